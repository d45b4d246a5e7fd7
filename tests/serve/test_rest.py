"""The REST server in a process of its own: its answers are those of `chess-cxr predict`, and nothing brings it down."""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from PIL import Image

from chess_cxr.encoders.load import load_encoder
from chess_cxr.records import UsageError
from chess_cxr.serve.fetch import fetch_films
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.rest_options import RestOptions, check_rest_options
from chess_cxr.store import open_store
from chess_cxr.tasks.bones.model import load_bone_suppressor, suppress_files
from chess_cxr.tasks.classify.answer import read_films
from pacs_node import wait_until, write_radiograph
from served import LABELS, Reply, Served, pack_parts, serve, unpack_earlier, write_findings_model

CANARY = "Canary^Quentin"
TOKEN = "a-token-of-twenty-letters"
UIDS = ("1.2.826.0.1.99", "1.2.826.0.1.98", "1.2.826.0.1.97")
INSTANCE = "/dicom-web/studies/{}/series/{}/instances/{}".format(*UIDS)


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


class Pacs(BaseHTTPRequestHandler):
    """A DICOMweb server of one film; /away redirects."""

    film = b""

    def do_GET(self) -> None:
        if "/away/" in self.path:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            return
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + self.film + b"\r\n--x--\r\n"
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
        self.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=x')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pacs(folder: Path) -> Iterator[int]:
    Pacs.film = (folder / "film.dcm").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pacs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def served(folder: Path, pacs: int) -> Iterator[Served]:
    models = [folder / name for name in ("findings", "bones", "encoder")]
    small = ["--film-mib", "8", "--limits.film-gib", "1", "--limits.film-seconds", "20", "--body-seconds", "4"]
    hosts = ["--dicomweb-hosts", f"127.0.0.1:{pacs}", "--dicomweb-token-file", str(folder / "token")]
    with serve(folder, *models, *small, *hosts, "--store", folder / "films.lance") as running:
        yield running


def check_problem(reply: Reply, status: int, part: str = "") -> None:
    assert reply.status == status and reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status and problem["detail"] and "\n" not in problem["detail"]
    assert part in problem["detail"]


# ---------------------------------------------------------------- the same answers


def test_predict_says_what_the_command_says_to_the_last_digit(served: Served, folder: Path) -> None:
    film = folder / "film.dcm"
    words = [sys.executable, "-m", "chess_cxr", "predict", str(folder / "findings"), str(film), "--json", "--quiet"]
    done = subprocess.run(
        [*words, "--point", "specificity_90"], capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    [expected] = json.loads(done.stdout)
    [answer] = served.post("/v1/predict?point=specificity_90", film.read_bytes()).json()["answers"]
    assert [finding["label"] for finding in answer["findings"]] == list(LABELS)
    for finding in answer["findings"]:
        label = finding["label"]
        assert finding["probability"] == expected[label]
        assert finding["threshold"] == expected[f"{label} threshold"]
        assert finding["positive"] == expected[f"{label} positive"]
    for ours, theirs in (("model", "model"), ("model_sha256", "model_sha256"), ("contract_sha256", "contract_sha256"),
                         ("flags", "flags"), ("operating_point", "point"), ("reason", "reason")):  # fmt: skip
        assert answer[ours] == expected[theirs]
    assert answer["calibrated"] and expected["uncalibrated"] == []


def test_films_come_raw_in_parts_or_by_address_with_one_answer(served: Served, folder: Path, pacs: int) -> None:
    content = (folder / "film.dcm").read_bytes()
    [raw] = served.post("/v1/predict", content, "application/octet-stream").json()["answers"]
    parts = [("../../etc/passwd", content), ("film\0.dcm", b"no film"), ("C:\\x", content)]
    several = served.post("/v1/predict", *pack_parts(*parts)).json()["answers"]
    assert [answer["film"] for answer in several] == [0, 1, 2]
    assert several[0]["findings"] == several[2]["findings"] == raw["findings"]
    assert several[1]["reason"] and several[1]["findings"] == []
    address = json.dumps({"dicomweb": f"http://127.0.0.1:{pacs}{INSTANCE}"}).encode()
    assert served.post("/v1/predict", address, "application/json").json()["answers"] == [raw]


def test_a_request_may_bring_its_own_token_for_the_archive(served: Served, pacs: int) -> None:
    def ask(bearer: object) -> Reply:
        told = {"dicomweb": f"http://127.0.0.1:{pacs}{INSTANCE}", "bearer": bearer}
        return served.post("/v1/predict", json.dumps(told).encode(), "application/json")

    assert ask(TOKEN).status == ask("").status == 200
    check_problem(ask("another-token"), 502, "401")
    for wrong in (7, "two words", "line\r\nHost: elsewhere", "a" * 9000, "="):
        check_problem(ask(wrong), 422, "RFC 6750")
    assert TOKEN.encode() not in served.log.read_bytes()


def test_saliency_is_a_picture_of_the_film(served: Served, folder: Path) -> None:
    content = (folder / "film.dcm").read_bytes()
    drawn = [served.post(f"/v1/saliency?label=Edema&style={style}", content) for style in ("map", "overlay")]
    over, alone = (Image.open(io.BytesIO(reply.body)) for reply in drawn[::-1])
    assert {reply.headers["content-type"] for reply in drawn} == {"image/png"}
    assert (over.mode, alone.mode) == ("RGB", "RGBA") and over.size == alone.size
    maps = [
        Image.open(io.BytesIO(served.post(f"/v1/saliency?label={name}&style=map", content).body)) for name in LABELS
    ]
    assert {np.asarray(found)[..., 3].max() for found in maps} <= {0, 255}
    assert max(np.asarray(found)[..., 3].max() for found in maps) == 255
    check_problem(served.post("/v1/saliency?label=Nonsense", content), 404, "Edema")
    check_problem(served.post("/v1/saliency?style=neither", content), 422, "style")


def test_the_film_without_bone_is_the_one_of_predict(served: Served, folder: Path, tmp_path: Path) -> None:
    film = folder / "film.dcm"
    [expected] = suppress_files(load_bone_suppressor(folder / "bones"), [film], tmp_path)
    assert expected.out is not None
    made = served.post("/v1/suppress-bones", film.read_bytes(), Accept="application/dicom")
    assert made.headers["content-type"] == "application/dicom"
    assert pydicom.dcmread(io.BytesIO(made.body)).PixelData == pydicom.dcmread(expected.out).PixelData
    drawn = served.post("/v1/suppress-bones?side=100", film.read_bytes(), Accept="image/png")
    assert max(Image.open(io.BytesIO(drawn.body)).size) == 100
    shown = served.post("/v1/film", film.read_bytes())
    check_problem(served.post("/v1/suppress-bones", shown.body, "image/png", Accept="application/dicom"), 406)


def test_embeddings_are_those_of_the_encoder_as_json_and_arrow(served: Served, folder: Path) -> None:
    film = folder / "film.dcm"
    [read] = read_films([film])
    assert read.film_HW is not None
    expected = load_encoder(folder / "encoder").embed([read.film_HW])
    told = served.post("/v1/embed", film.read_bytes()).json()
    assert np.array_equal(np.array(told["features"], np.float32), expected)
    reply = served.post("/v1/embed", film.read_bytes(), Accept="application/vnd.apache.arrow.stream")
    table = pa.ipc.open_stream(reply.body).read_all()
    assert np.array_equal(np.array(table["feature"].to_pylist(), np.float32), expected)
    assert table.schema.metadata[b"model_sha256"].decode() == told["model_sha256"]


def test_a_film_of_the_store_is_its_own_nearest_neighbour(served: Served, folder: Path) -> None:
    store = open_store(folder / "films.lance")
    number = len(store) // 2
    [jpeg] = store.read_jpegs([number])
    assert served.ask("GET", f"/v1/known/{number}").body == jpeg
    first, second, third = served.post("/v1/neighbours?count=3", jpeg, "image/jpeg").json()["neighbours"]
    assert first["uid"] == store.films["uid"][number] or first["cosine"] >= second["cosine"]
    assert first["cosine"] > 0.98 and first["cosine"] >= second["cosine"] >= third["cosine"]
    assert set(first["labels"]) == set(store.label_names)
    check_problem(served.ask("GET", f"/v1/known/{len(store)}"), 422)


def test_models_and_openapi_tell_what_is_served(served: Served, folder: Path) -> None:
    models = {model["name"]: model for model in served.ask("GET", "/v1/models").json()["models"]}
    assert {name: model["task"] for name, model in models.items()} == {
        "findings": "classify", "bones": "bones", "encoder": "embed", "films.lance": "neighbours",
    }  # fmt: skip
    described = served.ask("GET", "/openapi.json").json()
    predict = described["paths"]["/v1/predict"]["post"]
    [example] = predict["responses"]["200"]["content"]["application/json"]["example"]["answers"]
    [answer] = served.post("/v1/predict", (folder / "film.dcm").read_bytes()).json()["answers"]
    assert example.keys() == answer.keys() and example["model_sha256"] == answer["model_sha256"]
    assert "application/dicom" in predict["requestBody"]["content"]


# ---------------------------------------------------------------- hostile requests


def deflate_bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a few hundred kilobytes."""
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(20_001)) for _ in range(20_000)) + packed.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def write_many_tags(film: Path) -> bytes:
    dataset, written = pydicom.dcmread(film), io.BytesIO()
    block = dataset.private_block(0x0099, CANARY, create=True)
    for number in range(0xFF):
        block.add_new(number, "LO", CANARY)
    for group in range(0x1001, 0x1001 + 2 * 40, 2):
        for number in range(0x1000, 0x1000 + 250):
            dataset.add_new((group, number), "UN", b"Canary")
    dataset.save_as(written)
    return written.getvalue()


def test_hostile_films_are_refused_with_a_reason_and_the_server_lives(served: Served, folder: Path) -> None:
    film = folder / "film.dcm"
    content = film.read_bytes()
    wrong = pydicom.dcmread(film)
    wrong.Rows = 60_000
    huge = io.BytesIO()
    wrong.save_as(huge)
    before = read_memory(served)
    for hostile in (deflate_bomb(), content[: len(content) // 2], content[:140], huge.getvalue(), b"\0" * 5000):
        check_problem(served.post("/v1/predict", hostile), 422)
        check_problem(served.post("/v1/suppress-bones", hostile), 422)
    many = served.post("/v1/predict", write_many_tags(film))
    assert many.status == 200 and many.json()["answers"][0]["findings"]
    assert served.post("/v1/predict", content).status == 200
    assert b"anary" not in served.log.read_bytes()
    assert read_memory(served) < before + 200
    bodies = f"chess-cxr-{served.process.pid}-*/*"  # a body goes when its answer has left
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob(bodies)))


def read_memory(served: Served) -> int:
    """Resident memory of the server in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{served.process.pid}/status").read_text())
    assert found
    return int(found[1]) >> 10


def test_wrong_bodies_are_4xx(served: Served, folder: Path) -> None:
    content = (folder / "film.dcm").read_bytes()
    check_problem(served.post("/v1/predict", content, "text/html"), 415)
    check_problem(served.post("/v1/predict", content, "application/x-www-form-urlencoded"), 415)
    check_problem(served.post("/v1/predict", b""), 400)
    check_problem(served.post("/v1/predict", b"--nothing", "multipart/form-data; boundary=cut"), 400)
    check_problem(served.post("/v1/predict", b"rubbish", "multipart/form-data"), 400)
    check_problem(served.post("/v1/predict", *pack_parts(*[("a", b"b")] * 65)), 400)
    check_problem(served.post("/v1/predict", b"[" * 60_000, "application/json"), 400)
    check_problem(served.post("/v1/predict", b'{"dicomweb": 1}', "application/json"), 422)
    check_problem(served.post("/v1/predict?point=best", content), 422, "operating point")
    check_problem(served.post("/v1/predict?model=../findings", content), 404)
    check_problem(served.ask("GET", "/v1/predict"), 405)
    check_problem(served.ask("GET", f"/{CANARY}"), 404)
    for path in ("/page/../rest.py", "/page/%2e%2e%2frest.py", "/page/__init__.py", "//etc/passwd"):
        check_problem(served.ask("GET", path), 404)


def test_a_body_that_is_too_large_is_refused_before_and_while_it_comes(served: Served) -> None:
    check_problem(served.post("/v1/predict", bytes(9 << 20)), 413, "8 MiB")

    def drip() -> Iterator[bytes]:
        for _ in range(9):
            yield bytes(1 << 20)

    check_problem(served.ask("POST", "/v1/predict", drip(), Content_Type="application/dicom"), 413)


def test_slow_clients_are_given_up(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as plug:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\n"
        plug.sendall(head + b"Content-Length: 99\r\n\r\nfew")
        plug.settimeout(30)
        assert b" 408 " in plug.recv(1 << 16)
    with socket.create_connection(("127.0.0.1", served.port)) as plug:
        plug.sendall(b"GET /health HTTP/1.1\r\n")
        plug.settimeout(60)
        assert plug.recv(100) == b""  # no header within the time for one
    assert served.ask("GET", "/health").status == 200


def test_addresses_lead_to_allowed_hosts_alone(served: Served, pacs: int) -> None:
    def ask(address: str) -> Reply:
        return served.post("/v1/predict", json.dumps({"dicomweb": address}).encode(), "application/json")

    check_problem(ask(f"http://localhost:{pacs}{INSTANCE}"), 403)
    check_problem(ask(f"http://169.254.169.254{INSTANCE}"), 403)
    check_problem(ask(f"http://127.0.0.1:{pacs + 1}{INSTANCE}"), 403)
    check_problem(ask(f"http://127.0.0.1:{pacs}@evil.example{INSTANCE}"), 403)
    check_problem(ask("file:///etc/passwd"), 422)
    check_problem(ask(f"http://127.0.0.1:{pacs}/metadata"), 422)
    check_problem(ask(f"http://127.0.0.1:{pacs}/a/../b{INSTANCE}"), 422)
    check_problem(ask(f"http://127.0.0.1:{pacs}/away{INSTANCE}"), 502, "302")
    assert UIDS[0].encode() not in served.log.read_bytes()


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0"])
def test_not_even_an_allowed_name_leads_to_link_local_addresses(host: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="link-local") as caught:
        fetch_films(f"http://{host}{INSTANCE}", tmp_path, [host], None, 1 << 20, 1)
    assert caught.value.status == 403


def test_a_token_file_that_cannot_be_read_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="token file cannot be read") as raised:
        fetch_films(f"http://127.0.0.1:1{INSTANCE}", tmp_path, ["127.0.0.1:1"], tmp_path / "absent", 1 << 20, 1)
    assert raised.value.status == 502


# ---------------------------------------------------------------- who may ask, and what is told


def test_no_name_id_uid_or_file_name_is_told_or_logged(served: Served, folder: Path) -> None:
    film = pydicom.dcmread(folder / "film.dcm")
    film.PixelData = film.PixelData[:100]
    written = io.BytesIO()
    film.save_as(written)
    replies = [
        served.post("/v1/predict", *pack_parts((f"{CANARY}.dcm", written.getvalue()))),
        served.post(f"/v1/predict?point={CANARY}&model={CANARY}", written.getvalue()),
        served.post(f"/v1/saliency?style={CANARY}", written.getvalue()),
        served.post(f"/v1/{CANARY}", written.getvalue(), **{"X-Name": CANARY}),
        served.ask("GET", "/metrics"),
    ]
    told = b"".join(reply.body + repr(reply.headers).encode() for reply in replies) + served.log.read_bytes()
    for secret in (b"anary", *(uid.encode() for uid in UIDS)):
        assert secret not in told
    assert b'chess_cxr_requests_total{route="/v1/predict",status="200"}' in replies[-1].body
    assert [reply.status for reply in replies[:-1]] == [422, 404, 422, 404]


def test_every_answer_has_the_headers_that_protect_a_browser(served: Served) -> None:
    for reply in (served.ask("GET", "/"), served.ask("GET", "/nothing"), served.post("/v1/predict", b"")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "server" not in reply.headers


def test_pages_of_others_do_not_reach_a_server_on_loopback(served: Served) -> None:
    check_problem(served.ask("GET", "/v1/models", Host="evil.example"), 421)
    check_problem(served.ask("GET", "/v1/models", Sec_Fetch_Site="cross-site"), 403)
    assert served.ask("GET", "/v1/models", Host="localhost:1").status == 200


def test_a_token_is_asked_for_where_one_is_set_and_a_full_desk_sends_away(folder: Path) -> None:
    content = (folder / "film.dcm").read_bytes()
    words = ["--host", "0.0.0.0", "--token-file", "token", "--most-requests", "1"]
    with serve(folder, folder / "findings", *words) as running:
        assert running.ask("GET", "/health").status == running.ask("GET", "/").status == 200
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            check_problem(running.post("/v1/predict", content, **given), 401)
        right = {"Authorization": f"Bearer {TOKEN}"}
        with socket.create_connection(("127.0.0.1", running.port)) as plug:  # one that stays half-sent
            head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
            plug.sendall(f"{head}Content-Type: application/dicom\r\nContent-Length: 99\r\n\r\nfew".encode())
            deadline = time.monotonic() + 20
            while running.ask("GET", "/ready").status == 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            away = running.post("/v1/predict", content, **right)
            check_problem(away, 503)
            assert int(away.headers["retry-after"]) >= 1
        deadline = time.monotonic() + 20
        while running.ask("GET", "/ready").status == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running.post("/v1/predict", content, **right).status == 200


def test_options_that_open_the_server_to_strangers_are_refused() -> None:
    with pytest.raises(UsageError, match="--token-file"):
        check_rest_options(RestOptions(), "0.0.0.0", False)
    check_rest_options(RestOptions(), "0.0.0.0", True)
    check_rest_options(RestOptions(), PacsOptions(Path("spool"), "").host, False)
    with pytest.raises(UsageError, match="--dicomweb-hosts"):
        check_rest_options(RestOptions(dicomweb_hosts=("http://a/",)), "localhost", False)
