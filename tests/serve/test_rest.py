"""The REST server in a process of its own: it answers as `chess-cxr predict` does, and tells nothing of anybody."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from PIL import Image

from chess_cxr.encoders.load import load_encoder
from chess_cxr.records import UsageError
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.rest_options import RestOptions, check_rest_options
from chess_cxr.store import open_store
from chess_cxr.tasks.bones.model import load_bone_suppressor, suppress_files
from chess_cxr.tasks.classify.answer import read_films
from dicomweb_server import CANARY, INSTANCE, TOKEN, UIDS
from served import LABELS, Reply, Served, check_problem, pack_parts, serve

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
    drawn = served.post("/v1/suppress-bones", film.read_bytes(), Accept="image/*")
    assert drawn.headers["content-type"] == "image/png"
    check_problem(served.post("/v1/suppress-bones", film.read_bytes(), Accept="text/html"), 406, "application/dicom")
    check_problem(served.post("/v1/suppress-bones?side=-5", film.read_bytes(), Accept="image/png"), 422, "side")


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
        served.ask(CANARY, "/v1/predict"),
        served.ask("GET", "/metrics"),
    ]
    told = b"".join(reply.body + repr(reply.headers).encode() for reply in replies) + served.log.read_bytes()
    for secret in (b"anary", *(uid.encode() for uid in UIDS)):
        assert secret not in told
    assert b'chess_cxr_requests_total{route="/v1/predict",status="200"}' in replies[-1].body
    assert [reply.status for reply in replies[:-1]] == [422, 404, 422, 404, 405]


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
