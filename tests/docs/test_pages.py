"""What pages show and `make docs-blocks` does not run."""

import re
from pathlib import Path

import lance
from docs.hooks import WIDTH, on_page_markdown

import chess_cxr
from chess_cxr.benchmarking.suite import read_suite
from chess_cxr.cli import COMMANDS
from chess_cxr.encoders import facts, folder
from chess_cxr.store import begin_store

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_suite_with_everything_that_docs_show_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (DOCS / "benchmark.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "suite.toml").write_text(max(blocks, key=len))
    suite = read_suite(tmp_path / "suite.toml")
    assert list(suite.encoders) == ["scratch", "ImageNet", "CheSS", "ours"]
    assert suite.tasks["pneumonia"].labels == ("bacteria", "normal", "virus")


def test_every_command_has_its_help_and_an_example_on_a_page() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "commands").glob("*.md"))
    assert set(re.findall(r"<!-- help: ([a-z ]+) -->", pages)) == set(COMMANDS)
    shown = {name for name in COMMANDS if re.search(rf"^\$ chess-cxr {name}\b", pages, re.MULTILINE)}
    assert COMMANDS.keys() - shown == {"weights card", "weights onnx"}  # need results, and an extra


def test_the_help_of_a_command_fits_a_page() -> None:
    shown = on_page_markdown("# embed\n\n<!-- help: embed -->\n")
    assert "usage: chess-cxr embed" in shown and "--device DEVICE" in shown
    assert max(map(len, shown.splitlines())) <= WIDTH


def test_all_public_names_are_on_the_page_of_python() -> None:
    listed = re.findall(r"^::: chess_cxr\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(chess_cxr.__all__)


def test_the_formats_are_those_that_are_written(tmp_path: Path) -> None:
    told = (DOCS / "formats.md").read_text()
    begin_store(tmp_path / "films.lance", ["effusion"], "SYNTHETIC").finish()
    names = lance.dataset(str(tmp_path / "films.lance")).schema.names
    assert "jpeg" in names
    for name in names:
        assert f"`{re.sub(':.*', ':NAME', name)}`" in told or f"`{name}`" in told, name
    for name in (facts.WEIGHTS_FILE, facts.GOLDEN_FILE, facts.UIDS_FILE, folder.CARD_FILE, *facts.OPTIONAL_FILES):
        assert f"`{name}`" in told
