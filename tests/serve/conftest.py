"""A server of three models in a process of its own, with small limits, and the archive that it may ask."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomweb_server import CANARY, TOKEN, UIDS, run_dicomweb
from pacs_node import write_radiograph
from served import Served, serve, unpack_earlier, write_findings_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    unpack_earlier(place)
    write_findings_model(place / "findings")
    (place / "token").write_text(TOKEN)
    study, series, instance = UIDS
    write_radiograph(
        place / "film.dcm", PatientName=CANARY, PatientID="canary-id-77", StudyInstanceUID=study,
        SeriesInstanceUID=series, SOPInstanceUID=instance,
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def pacs(folder: Path) -> Iterator[int]:
    with run_dicomweb(folder / "film.dcm") as port:
        yield port


@pytest.fixture(scope="module")
def mute() -> Iterator[int]:
    """Port of an archive that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as plug:
        yield plug.getsockname()[1]


@pytest.fixture(scope="module")
def served(folder: Path, pacs: int, mute: int) -> Iterator[Served]:
    models = [folder / name for name in ("findings", "bones", "encoder")]
    small = ["--film-mib", "8", "--limits.film-gib", "1", "--limits.film-seconds", "20", "--body-seconds", "4"]
    small += ["--spool-gib", "0.015"]
    hosts = ["--dicomweb-hosts", f"127.0.0.1:{pacs}", f"127.0.0.1:{mute}"]
    hosts += ["--dicomweb-token-file", str(folder / "token")]
    with serve(folder, *models, *small, *hosts, "--store", folder / "films.lance") as running:
        yield running
