"""A real archive: Orthanc routes a study to the node, and the results appear in the same study."""

import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pydicom
import pytest
from tests.serve.test_results import read_findings

from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.pull import pull_films, take_part
from chess_cxr.serve.queue import Queue
from chess_cxr.serve.send import Refused, Unreachable, send_results
from pacs_node import (
    ORTHANC_PLUGIN,
    PACS,
    answer_by_grey,
    count,
    find_errors,
    find_port,
    is_absent,
    run_node,
    run_orthanc,
    run_tool,
    wait_until,
    write_radiograph,
)
from places import CHECKOUT

pytestmark = pytest.mark.skipif(
    is_absent("Orthanc", str(ORTHANC_PLUGIN), "dciodvfy"),
    reason="no Orthanc (Debian: orthanc, orthanc-dicomweb, dicom3tools)",
)


def read_block(mark: str) -> str:
    """The block of docs/serving.md that begins with a line, as a reader would copy it."""
    page = (CHECKOUT / "docs" / "serving.md").read_text("utf-8")
    [block] = [found for found in re.findall(r"```[^\n]*\n(.*?)\n```\n", page, re.DOTALL) if mark in found]
    return block


def check_study(orthanc, study: str, film: Path, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """The film's study holds one of each result, valid for checkers of others, with the numbers of the answer."""
    files = orthanc.fetch(study, folder)
    assert set(files) == {"DX", "SR", "OT derived", "DX derived"} and len(list(folder.iterdir())) == 4
    assert [find_errors("dciodvfy", path) for path in files.values()] == [[]] * 4
    assert find_errors("dcentvfy", *files.values()) == []
    assert read_findings(files["SR"]) == answer_by_grey(film).findings
    told = run_tool("dsrdump", "+Pl", files["SR"])
    assert '"Finding")=(60046008,SCT,"Pleural effusion")' in told
    first = answer_by_grey(film).findings[0].probability
    [said, *_] = re.findall(r'"Probability"\)="([0-9.]+)"', told)
    assert abs(float(said) - first) < 1e-12


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_orthanc_routes_a_study_and_gets_its_results(way: str, tmp_path: Path) -> None:
    """With the configuration of docs/serving.md."""
    port, spool = find_port(), tmp_path / "spool"
    with run_orthanc(tmp_path / "orthanc", port, read_block("OnStoredInstance")) as orthanc:
        target = f"{PACS}@127.0.0.1:{orthanc.dicom_port}" if way == "C-STORE" else f"{orthanc.url}/dicom-web"
        with run_node(spool, target, dicom_port=port):
            film = write_radiograph(tmp_path / "film.dcm")
            study = orthanc.store(film)
            wait_until(lambda: orthanc.count_instances() == 4)
            wait_until(lambda: count(spool)["sent"] == 1)
            check_study(orthanc, study, film, tmp_path / "first")
            before = orthanc.ask(f"/studies/{study}/statistics")
            images = [orthanc.ask(f"/series/{series}") for series in orthanc.ask(f"/studies/{study}")["Series"]]
            resent = [each["ID"] for each in images if each["MainDicomTags"]["Modality"] != "SR"]
            orthanc.ask("/modalities/chess/store", json.dumps(resent).encode())  # film and pictures once more
            orthanc.store(film)
            time.sleep(3)
            wait_until(lambda: count(spool)["received"] == count(spool)["answered"] == 0)
            assert orthanc.ask(f"/studies/{study}/statistics") == before
            assert orthanc.ask("/statistics")["CountStudies"] == 1
        log = (tmp_path / "orthanc" / "orthanc.log").read_text()
        assert "Lua" not in "".join(line for line in log.splitlines() if line.startswith("E"))


def test_the_configuration_in_the_docs_is_valid() -> None:
    told = json.loads(read_block('"DicomModalities"'))
    assert told["DicomModalities"]["chess"][0] == "CHESS_CXR"


def test_the_node_finds_new_films_by_itself(tmp_path: Path) -> None:
    """--pull: no routing, QIDO-RS and WADO-RS alone; and again after a restart, nothing twice."""
    spool = tmp_path / "spool"
    with run_orthanc(tmp_path / "orthanc", 1) as orthanc:
        url = f"{orthanc.url}/dicom-web"
        film = write_radiograph(tmp_path / "film.dcm")
        study = orthanc.store(film)
        orthanc.store(write_radiograph(tmp_path / "old.dcm", 1, 2, StudyDate="20010203"))
        with run_node(spool, url, pull=url, pull_seconds=0.3):
            wait_until(lambda: orthanc.count_instances() == 5)
            wait_until(lambda: count(spool)["sent"] == 3)  # the film, and its two pictures, which are left alone
        with run_node(spool, url, pull=url, pull_seconds=0.3):
            second = write_radiograph(tmp_path / "second.dcm", 2)
            orthanc.store(second)
            wait_until(lambda: orthanc.count_instances() == 9)
            wait_until(lambda: count(spool)["sent"] == 6)
        assert orthanc.ask("/statistics")["CountStudies"] == 2
        reports = orthanc.fetch(study, tmp_path / "out")
        assert read_findings(reports["SR"]) in [answer_by_grey(path).findings for path in (film, second)]


def test_an_archive_that_is_away_for_a_while_gets_its_results(tmp_path: Path) -> None:
    port, spool = find_port(), tmp_path / "spool"
    ports = {"DicomPort": find_port(), "HttpPort": find_port()}
    lua = read_block("OnStoredInstance")
    target = f"http://127.0.0.1:{ports['HttpPort']}/dicom-web"
    with run_node(spool, target, 1, dicom_port=port, first_wait=0.2, longest_wait=0.5):
        film = write_radiograph(tmp_path / "film.dcm")
        with run_orthanc(tmp_path / "orthanc", port, lua, **ports) as orthanc:
            study = orthanc.store(film)
            wait_until(lambda: sum(count(spool).values()) == 1)
        wait_until(lambda: "results wait" in (tmp_path / "spool.log").read_text())
        with run_orthanc(tmp_path / "orthanc", port, lua, **ports) as orthanc:
            wait_until(lambda: count(spool)["sent"] == 1)
            check_study(orthanc, study, film, tmp_path / "out")


# ---------------------------------------------------------------- DICOMweb


def test_a_server_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    for target in (f"http://127.0.0.1:{find_port()}/dicom-web",):
        with pytest.raises(Unreachable, match="cannot be reached"):
            list(send_results(target, [(0, film)], "CHESS"))


@pytest.mark.parametrize("status", [302, 307, 401, 503, 400])
def test_no_redirect_is_followed_and_the_token_goes_to_the_server_alone(status: int, tmp_path: Path) -> None:
    elsewhere: list[str] = []
    asked: list[str] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/other")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            elsewhere.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "token").write_text("secret\n")
    film = write_radiograph(tmp_path / "film.dcm")
    with ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(Refused if status == 400 else Unreachable) as caught:
                url = f"http://127.0.0.1:{server.server_port}"
                list(send_results(url, [(0, film)], "CHESS", tmp_path / "token"))
        finally:
            server.shutdown()
    assert asked == ["Bearer secret"] and elsewhere == [] and "1.2.826" not in str(caught.value)


def test_a_wrong_path_waits_and_a_refusal_does_not(tmp_path: Path) -> None:
    film = write_radiograph(tmp_path / "film.dcm")
    with run_orthanc(tmp_path / "orthanc", 1) as orthanc:
        with pytest.raises(Unreachable, match="HTTP 404"):
            list(send_results(f"{orthanc.url}/elsewhere", [(0, film)], "CHESS"))
        assert list(send_results(f"{orthanc.url}/dicom-web", [(7, film), (8, film)], "CHESS")) == [7, 8]
        assert orthanc.count_instances() == 1
        with pytest.raises(Refused):
            list(send_results(f"{orthanc.url}/dicom-web", [(0, spoil(film))], "CHESS"))


def spoil(film: Path) -> Path:
    """Without a study UID, nobody can file it."""
    broken = pydicom.dcmread(film)
    del broken.StudyInstanceUID, broken.SOPInstanceUID
    broken.save_as(film.with_name("spoilt.dcm"))
    return film.with_name("spoilt.dcm")


def test_a_film_larger_than_allowed_is_not_pulled(tmp_path: Path) -> None:
    with run_orthanc(tmp_path / "orthanc", 1) as orthanc:
        orthanc.store(write_radiograph(tmp_path / "small.dcm"))
        orthanc.store(write_radiograph(tmp_path / "large.dcm", 2, TextValue="x" * (2 << 20)))
        url, queue = f"{orthanc.url}/dicom-web", Queue(tmp_path / "spool")
        options = PacsOptions(tmp_path / "spool", url, pull=url, film_mib=1)
        assert pull_films(options, queue, "models", lambda: None) == 1
        assert pull_films(options, queue, "models", lambda: None) == 0


@pytest.mark.parametrize(
    ("body", "kind", "part"),
    [
        (b"--B\r\nA: b\r\n\r\nFILM\r\n\r\nX\r\n--B--", "multipart/related; boundary=B", b"FILM\r\n\r\nX"),
        (b"x\r\n--B B\r\n\r\nFILM\r\n--B B--\r\n", 'multipart/related; type="a/b"; boundary="B B"', b"FILM"),
        (b"FILM", "application/dicom", b"FILM"),
    ],
)
def test_the_film_is_taken_out_of_its_envelope(body: bytes, kind: str, part: bytes) -> None:
    assert take_part(body, kind) == part


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"<html>", "text/html"), (b"FILM", "multipart/related"), (b"--B\r\n\r\nFI", "multipart/related; boundary=B")],
)
def test_an_answer_that_is_no_film_is_none(body: bytes, kind: str) -> None:
    assert take_part(body, kind) is None
