"""What users do by mistake, command by command: one line that says what is wrong and what to do; nothing is written."""

import errno
import json
import shutil
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from chess_cxr.cli import word_system_error
from command_line import run
from tiny_runs import build_tiny_config


@pytest.fixture(scope="module")
def made(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a run, its encoder and a classifier, and copies that are damaged."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(small_store, folder / "films.lance")
    (folder / "tiny.json").write_text(json.dumps(asdict(build_tiny_config())))
    for words in (
        "pretrain films.lance --config tiny.json --out run --quiet",
        "export run --out enc --without-onnx",
        "embed pixels:4 films.lance --quiet",
        "finetune classify enc films.lance --out model --quiet",
    ):
        answer = run(*words.split(), cwd=folder)
        assert answer.code == 0, answer
    for name, damage in {
        "run_cut": lambda it: (it / "config.json").write_text('{"training": '),
        "run_list": lambda it: (it / "config.json").write_text("[1]"),
        "run_bad": lambda it: _leave_one_damaged(it / "checkpoints"),
        "model_cut": lambda it: (it / "config.json").write_text("{"),
        "model_light": lambda it: (it / "model.safetensors").unlink(),
        "model_later": lambda it: _change(it / "config.json", task="segment"),
    }.items():
        shutil.copytree(folder / name.partition("_")[0], folder / name)
        damage(folder / name)
    (folder / "film.png").write_bytes(b"no film")
    (folder / "typo.json").write_text((folder / "tiny.json").read_text().replace('"steps"', '"stepps"'))
    (folder / "nothing.json").write_text("{}")
    (folder / "latin.toml").write_bytes("# für\n".encode("latin-1"))
    (folder / "typo.toml").write_text('drws = 3\n[encoders]\na = "pixels:4"\n[tasks.t]\nstore = "films.lance"\n')
    (folder / "device.toml").write_text((folder / "typo.toml").read_text().replace("drws = 3", 'device = "tpu"'))
    (folder / "ragged.csv").write_text("file,patient\na.png,1,2,3\n")
    (folder / "open.csv").write_text('file,patient\na.png,"1\n')
    (folder / "cut.csv.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03")
    (folder / "empty.pth.tar").touch()
    shutil.copytree(folder / "films.lance", folder / "other" / "films.lance")
    board = {"format": "chess-cxr leaderboard 1", "tasks": {}, "entries": []}
    (folder / "failed.json").write_text(json.dumps(board))
    return folder


def _leave_one_damaged(checkpoints: Path) -> None:
    newest, *older = sorted(checkpoints.iterdir(), reverse=True)
    newest.write_bytes(bytes(9))
    for file in older:
        file.unlink()


def _change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("select films.lance --encoder pixels:4 --films 5 --out new --seed -1", "--seed must be 0 or more"),
        ("map films.lance --encoder pixels:4 --out new --seed -1", "--seed must be 0 or more"),
        ("evaluate films.lance --encoders pixels:4 --seed -1", "--seed must be 0 or more"),
        ("evaluate films.lance --encoders pixels:4 --replicates 0", "--replicates must be 1 or more"),
        ("finetune classify pixels:4 films.lance --out new --seed -1", "seed must be 0 or more"),
        ("select films.lance --encoder pixels:4 --films 5 --out new --where sex='X'", "no film of films.lance meets"),
        ("select films.lance --encoder pixels:4 --films 5 --out film.png/new", "film.png is no folder; choose another"),
        ("map films.lance films.lance --encoder pixels:4 --out new", "a store is given twice"),
        ("search films.lance nofilm --encoder pixels:4", "chess-cxr select lists uids"),
        ("pretrain films.lance --config tiny.json --out other", "other exists already and is no run"),
        ("pretrain films.lance --config tiny.json --out films.lance", "films.lance exists already and is no run"),
        ("pretrain films.lance --config tiny.json --out enc", "enc exists already and is no run"),
        ("pretrain films.lance --preset demo --out run_list", "config.json is damaged"),
        ("pretrain films.lance --config typo.json --out new", "typo.json: training.stepps: there is no such entry; pe"),
        ("pretrain films.lance --config nothing.json --out new", "nothing.json: preset: is missing"),
        ("export run_list --out new", "config.json is damaged"),
        ("export run_cut --out new", "config.json is damaged"),
        ("export enc --out new", "enc is not a run"),
        ("export run_bad --out new", "there is no older one"),
        ("weights show model", "model is a model, not an encoder"),
        ("weights show run", "run is a run; chess-cxr export"),
        ("weights show film.png", "film.png is a file"),
        ("weights show cxr-tiny", "published encoders on this machine: "),
        ("weights card enc --evaluation", "--evaluation needs at least one file"),
        ("weights import empty.pth.tar --out new", "is empty; download it again"),
        ("weights import typo.toml --out new", "is no PyTorch checkpoint, or is damaged"),
        ("predict nowhere film.png", "there is no nowhere"),
        ("predict model_cut film.png", "config.json is damaged"),
        ("predict model_light film.png", "model.safetensors is missing; copy the model again"),
        ("predict model_later film.png", "has the task 'segment'"),
        ("predict enc film.png", "enc is an encoder; chess-cxr finetune classify enc STORE"),
        ("predict model film.png --sure-map", "are for bone models"),
        ("benchmark latin.toml --out new", "is not UTF-8 text"),
        ("benchmark typo.toml --out new", "drws: there is no such entry; perhaps draws"),
        ("benchmark device.toml --out new", "there is no device 'tpu'"),
        ("benchmark merge nowhere --out new", "there is no nowhere"),
        ("benchmark merge typo.json --out new", "typo.json is not what a benchmark writes"),
        ("benchmark merge failed.json --out new", "holds no result: all parts of that benchmark failed"),
        ("benchmark card paper --encoders CheSS=enc ours=enc --stores films.lance other/films.lance --out new", "same"),
        ("ingest other --out new --table ragged.csv", "more cells than its header"),
        ("ingest other --out new --table open.csv", "cannot be divided into rows and cells: EOF inside string"),
        ("ingest other --out new --table cut.csv.gz", "is cut off or damaged"),
        ("ingest other --out new --table other", "is a folder; name the file"),
        ("plan --images 4e6 --gpus H100 --store films.lance", "--store is for --calibrate"),
        ("serve model --tls-certificate absent.pem", "REST itself has no TLS"),
        ("serve model --results-to PACS@127.0.0.1:104", "add --dicom-port or --pull"),
        ("runs film.png", "film.png is a file"),
    ],
)
def test_a_mistake_is_answered_by_one_line(words: str, parts: str, made: Path) -> None:
    before = sorted(made.rglob("*"))
    answer = run(*words.split(), cwd=made)
    assert answer.code in (1, 2) and answer.out == "", answer
    lines = [line for line in answer.err.splitlines() if not line.startswith(("ingest:", "note:"))]
    assert len(lines) == 1 and lines[0].startswith("chess-cxr: ") and parts in lines[0], answer.err
    assert "please report" not in answer.err and sorted(made.rglob("*")) == before


def test_a_suite_as_windows_saves_it_is_read(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "films.lance", tmp_path / "films.lance")
    text = (made / "typo.toml").read_text().replace("drws", "draws")
    (tmp_path / "suite.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run("benchmark", "card", "suite.toml", "--out", "cards", cwd=tmp_path).code == 0


def test_a_taken_port_is_told_before_models_are_loaded(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = run("serve", "model", "--port", taken.getsockname()[1], cwd=made)
    assert (answer.code, answer.out) == (1, "") and "choose another --port or --host" in answer.err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "ro/.s.csv.partial-5868"),
            "ro/s.csv cannot be written: Read-only",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", f"ro/.lb.{'8' * 32}.partial"),
            "ro/lb cannot be written: Read-only",
        ),
        (OSError(errno.EACCES, "Permission denied", "ro/.a.lance.lock"), "ro/a.lance cannot be written: Permission"),
        (OSError(errno.ENOENT, "No such file or directory", "a.png"), "No such file or directory: a.png"),
    ],
)
def test_a_file_that_cannot_be_written_has_the_name_that_the_user_gave_it(error: OSError, line: str) -> None:
    assert word_system_error(error).startswith(line)
