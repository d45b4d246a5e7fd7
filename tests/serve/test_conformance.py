"""The tables of the conformance statement are what the node does."""

import re

import pytest

from chess_cxr.serve.codes import FINDINGS
from chess_cxr.serve.dicom import FILM_CLASSES, PDU_BYTES, PDU_SECONDS, SECONDS, SYNTAXES, start_receiver
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.queue import Queue
from pacs_node import find_port
from places import CHECKOUT

pytest.importorskip("pynetdicom")
PAGE = (CHECKOUT / "docs" / "conformance.md").read_text("utf-8")


def read_table(heading: str) -> list[list[str]]:
    """Return the cells of a table of the page, row by row, without its head."""
    [_, table] = PAGE.split(f"{heading} |", 1)
    rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()[2:]]
    assert rows
    return rows


def list_uids(cell: str) -> list[str]:
    """Return the UIDs in a cell, in which ".51" stands for the one before with another end."""
    first, *more = cell.split(", ")
    return [first, *(first.rpartition(".")[0] + end for end in more)]


def test_the_contexts_are_those_that_the_port_accepts(tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = PacsOptions(tmp_path / "spool", "STORE@127.0.0.1:104", find_port(), calling=("STORESCU",))
    server = start_receiver(options, Queue(options.spool), "model", lambda: None)
    server.shutdown()
    accepted = {str(it.abstract_syntax): sorted(map(str, it.transfer_syntax)) for it in server.ae.supported_contexts}
    verification, *films = read_table("| SOP class | UID | transfer syntaxes")
    syntaxes = [uid for row in read_table("| transfer syntax | UID") for uid in list_uids(row[1])]
    assert sorted(syntaxes) == sorted(SYNTAXES)
    assert verification[2] == "Implicit VR, Explicit VR Little Endian"
    assert accepted == {verification[1]: ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]} | {
        row[1]: sorted(syntaxes) for row in films
    }
    assert [row[1] for row in films] == list(FILM_CLASSES)


def test_limits_and_names_are_those_of_the_options() -> None:
    told, options = {row[0]: row[1] for row in read_table("| item | value")}, PacsOptions
    assert told["associations at a time"] == f"{options.associations} (`associations`)"
    assert told["largest PDU announced"].startswith(f"{PDU_BYTES:,} bytes")
    assert told["largest object"].startswith(f"{options.film_mib} MiB (`film_mib`)")
    assert told["time-outs"] == f"{SECONDS:g} s without a sign of life, {PDU_SECONDS:g} s for one PDU"
    assert f"(`aet`, by default {options.aet})" in PAGE and f"tried {options.tries} times (`tries`)" in PAGE


def test_every_label_with_a_public_code_is_listed_with_it() -> None:
    *public, private = read_table("| label | code")
    told = {}
    for labels, cell in public:
        [code] = re.findall(r'^\((\w+), (\w+), "([^"]+)"\)$', cell)
        told |= {label.lower(): code for label in labels.split(", ")}
    ours = {label: (code.value, code.scheme_designator, code.meaning) for label, code in FINDINGS.items()}
    assert told == ours and "99CHESS" in private[1]
