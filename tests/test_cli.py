"""The command line as its users meet it: exit codes, what stands on which stream, and what only a process shows."""

import csv
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import lance
import numpy as np
import pytest

import chess_cxr
from chess_cxr.arguments import parse_encoders, parse_pairs
from chess_cxr.cli import COMMANDS, describe, parse_command, render_usage, word_complaint
from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.presets import PRESETS
from chess_cxr.records import UsageError
from chess_cxr.store import open_store
from command_line import Answer, run, run_process

# The drawn pictures of these tests are no chest films, and the ingest would see it.
ANY_PICTURE = ("--quality.no-quarantine-not-chest", "--workers", "1")


def assert_refused(answer: Answer, code: int, *parts: str) -> None:
    assert answer.code == code, answer
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert lines[-1].startswith("chess-cxr: ") and all(part in lines[-1] for part in parts), answer.err
    assert [line for line in lines[:-1] if not line.startswith(("note: ", "ingest: ", "embed ", "probe: "))] == []


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve PNGs of twelve patients and labels.csv, in which some labels are unknown."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        picture = rng.integers(60, 200, (40, 48)).astype(np.uint8)
        cv2.imwrite(str(folder / f"film{number:02d}.png"), picture)
        finding = ("1", "0", "nan", "")[number % 4]
        rows.append((f"film{number:02d}.png", f"P{number}", ("train", "val", "test")[number % 3], finding))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "patient", "split", "nodule"), *rows])
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = PRESETS["demo"]()
    training = replace(demo.training, steps=3, batch=8, log_every=1, checkpoint_every=3)
    tiny = replace(
        demo,
        method=MoCoConfig("test_resnet", 16, 32, norm_groups=2),
        views=replace(demo.views, size=32),
        training=training,
    )
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(asdict(tiny)))
    return path


@pytest.fixture(scope="module")
def encoder(small_store: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pretrain` and `export` make of the small store, through the command line."""
    folder = tmp_path_factory.mktemp("work")
    pretrained = run("pretrain", small_store, "--config", config, "--out", folder / "run", "--quiet")
    assert pretrained == Answer(0, f"{folder / 'run'}\n", "")
    exported = run("export", folder / "run", "--out", folder / "encoder", "--licence", "Apache-2.0")
    assert exported == Answer(0, f"{folder / 'encoder'}\n", "")
    return folder / "encoder"


# What can be said without work


def test_the_main_page_lists_every_command_with_a_line_and_is_short() -> None:
    answer = run_process("--help")
    assert answer.code == 0 and answer.err == "" and answer.out == render_usage() + "\n"
    assert answer == run("--help")
    lines = answer.out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 115
    for name, function in COMMANDS.items():
        assert f"  {name:17}  {describe(function)[0]}" in lines
    assert sum(line.startswith("  chess-cxr ") for line in lines) == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    answer = run(*name.split(), "--help")
    assert answer.code == 0 and answer.err == ""
    assert f"Example: {describe(COMMANDS[name])[1]}" in answer.out.splitlines()
    assert answer.out.startswith(f"usage: chess-cxr {name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_is_understood(name: str) -> None:
    program, *words = shlex.split(describe(COMMANDS[name])[1])
    assert program == "chess-cxr" and " ".join(words).startswith(name)
    call = parse_command(words)
    assert call.func is COMMANDS[name] and (call.args or call.keywords)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "name a command; chess-cxr --help lists them"),
        ("train", "no command 'train'"),
        ("weights", "there are weights import, weights show, weights card, weights onnx"),
        ("ingest films", "name the store to write with --out, such as --out films.lance"),
        ("ingest --out a.lance", "no source folder is given"),
        ("ingest films --out a --colour red", "--colour"),
        ("ingest films --out a --val much", "--val must be a number, not 'much'; "),
        ("finetune classify a b --out c --mode half", "--mode cannot be 'half'; choose from 'linear'"),
        ("ingest films --out a --columns patient", "'patient' should be FIELD=COLUMN"),
        ("ingest films --out a --workers 0", "--workers must be 1 or more"),
        ("ingest --out a", "no source folder is given"),
        ("evaluate s --encoders a=b --reference c", "reference 'c' is none of the encoders a"),
        ("evaluate s --encoders nowhere/first", "no encoder folder nowhere/first"),
        ("embed nowhere s --out a", "no encoder folder nowhere"),
        ("export nowhere --out a", "nowhere is not a run"),
        ("weights import nowhere --out a", "nowhere is not a file"),
        ("weights show nowhere", "nowhere is no encoder folder; published encoders on this machine: "),
        ("weights card nowhere --evaluation a.md", "no folder nowhere"),
        ("weights card . --evaluation nowhere.md", "cannot read nowhere.md"),
        ("weights onnx nowhere --out a", "no encoder folder nowhere"),
        ("pretrain nowhere --out a", "nowhere is not a store"),
    ],
)
def test_wrong_use_is_told_in_one_line_with_code_2(words: str, part: str, tmp_path: Path) -> None:
    assert_refused(run(*words.split(), cwd=tmp_path), 2, part)
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_ends_a_process_as_it_does_here(tmp_path: Path) -> None:
    words = ["weights", "import", "nowhere", "--out", "a"]
    answer = run_process(*words, cwd=tmp_path)
    assert_refused(answer, 2, "nowhere is not a file")
    assert answer == run(*words, cwd=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "ingest films --out there",
        "export run --out there",
        "weights import file --out there",
        "weights onnx random:test_resnet@32 --out there",
        "embed pixels:4 store --out there",
        "evaluate store --encoders pixels:4 --out there",
        "finetune classify pixels:4 store --out there",
    ],
)
def test_nothing_is_overwritten(words: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    assert_refused(run(*words.split(), cwd=tmp_path), 2, "there exists already")
    assert (tmp_path / "there").read_text() == "mine"


def test_an_option_that_is_given_twice_is_refused_and_not_half_forgotten() -> None:
    with pytest.raises(UsageError, match="--columns is given twice"):
        parse_command(["ingest", "films", "--columns", "patient=A", "--columns", "split=B"])


def test_pairs_and_encoders_are_parsed() -> None:
    assert parse_pairs(["patient=PatientID", "study="]) == {"patient": "PatientID", "study": ""}
    assert parse_encoders(["ours=a/b", "pixels:4", "runs/lr=0.1/"]) == {
        "ours": "a/b",
        "pixels:4": "pixels:4",
        "runs/lr=0.1": "runs/lr=0.1/",
    }
    for texts in (["=a"], ["a=b", "a=c"]):
        with pytest.raises(UsageError):
            parse_pairs(texts)
        with pytest.raises(UsageError):
            parse_encoders(texts)
    with pytest.raises(UsageError, match="at least one encoder"):
        parse_encoders([])


def test_a_complaint_in_a_box_becomes_one_line() -> None:
    rows = ["\x1b[31mfirst\x1b[0m  ", "part.  ", "───────", "second", "───", "For full helptext, run: x"]
    box = "\n".join(["╭─ Title ─╮", *(f"│ {row} │" for row in rows), "╰─────────╯"])
    assert word_complaint(box) == "first part; second"
    assert word_complaint("") == "the arguments make no sense"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ingst films", "there is no command 'ingst'; do you mean ingest?"),
        ("frobnicate", "there is no command 'frobnicate'; chess-cxr --help lists the commands"),
        ("finetune", "there is no command 'finetune'; there are finetune classify, finetune bones, finetune nodules"),
        ("ingest films --tabel x", "there is no option --tabel; perhaps --table; see chess-cxr ingest --help"),
        (
            "ingest films --out x --stratify",
            "there is no option --stratify; perhaps --no-stratify; see chess-cxr ingest --help",
        ),
        (
            "finetune bones e p --out x --spread --lr 4",
            "there is no option --spread; perhaps --no-spread; see chess-cxr finetune bones --help",
        ),
        ("ingest films --sizes 5", "there is no option --sizes; see chess-cxr ingest --help"),
        ("ingest films --workers many", "--workers must be a whole number, not 'many'; see chess-cxr ingest --help"),
        ("plan --images many", "--images must be a number, not 'many'; see chess-cxr plan --help"),
        ("pretrain s --out", "--out needs a value; see chess-cxr pretrain --help"),
        (
            "pretrain s --out r --trackers abacus",
            "--trackers cannot be 'abacus'; choose from 'tensorboard', 'wandb', 'mlflow'; "
            "see chess-cxr pretrain --help",
        ),
        (
            "select s --encoder e --out o",
            "missing: --films INT: number of films to select; see chess-cxr select --help",
        ),
        ("weights show a b c", "too many words: b, c; see chess-cxr weights show --help"),
    ],
)
def test_wrong_words_are_told_in_plain_ones(words: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_command(words.split())
    assert str(error.value) == told


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("ValueError('first\\nsecond')", 1, "chess-cxr: unexpected ValueError: first; please report this"),
        ("KeyError()", 1, "chess-cxr: unexpected KeyError: no message; please report this"),
        (
            "RuntimeError('operator torchvision::nms does not exist')",
            1,
            "chess-cxr: torch and torchvision do not fit together; pip install --force-reinstall both at once",
        ),
        ("PermissionError(13, 'Permission denied', '/out')", 1, "chess-cxr: Permission denied: /out"),
        ("KeyboardInterrupt()", 130, "chess-cxr: interrupted"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(fault: str, code: int, line: str) -> None:
    program = f"from chess_cxr import cli\ndef fail() -> None: raise {fault}\ncli.COMMANDS['fail'] = fail\ncli.main()"
    assert run_process("fail", program=("-c", program)) == Answer(code, "", f"{line}\n")
    loud = run_process("fail", program=("-c", program), CHESS_CXR_TRACEBACK="1")
    assert ("Traceback" in loud.err) == (code == 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_trouble(unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "chess_cxr", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_cost_no_film(films: Path, tmp_path: Path, closed: str) -> None:
    words = [sys.executable, "-m", "chess_cxr", "ingest", str(films), "--out", str(tmp_path / "a.lance"), *ANY_PICTURE]
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} {closed}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert ("Error" in done.stdout + done.stderr, "12 films" in done.stdout) == (False, ">&-" not in closed.split())
    assert len(open_store(tmp_path / "a.lance").read_films(range(12))) == 12


def test_ctrl_c_during_an_ingest_is_no_fault_and_leaves_nothing(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3000):
        os.link(films / "film00.png", folder / f"film{number:04d}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "chess_cxr", "ingest", folder, "--out", tmp_path / "films.lance", *ANY_PICTURE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "films.lance").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "chess-cxr: interrupted\n")
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


# Ingest


def test_what_is_no_chest_film_is_left_out_unless_told_otherwise(films: Path, tmp_path: Path) -> None:
    answer = run("ingest", films, "--out", tmp_path / "films.lance", "--workers", 1)
    assert_refused(answer, 1, "12 not a chest radiograph (judged from the picture)")


def test_the_public_data_sets_are_listed_as_json_too() -> None:
    listed = json.loads(run("ingest", "--dataset", "list", "--json").out)
    assert len(listed) == 14 and "nih-chestxray14" in {entry["name"] for entry in listed}


def test_a_store_that_is_named_twice_is_not_audited_against_itself(small_store: Path) -> None:
    answer = run("audit", small_store, f"{small_store}/")
    assert_refused(answer, 2, "occurs more than once; name it once")


def test_a_store_whose_parts_are_lost_is_one_line(small_store: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(small_store, tmp_path / "damaged.lance"))
    shutil.rmtree(damaged / "data")
    assert_refused(run("audit", damaged), 1, "cannot be read", "parts are missing or damaged")


@pytest.mark.real_films
def test_deidentify_says_which_file_each_uid_is_only_where_it_is_asked(tmp_path: Path, real_films: Path) -> None:
    words = ("deidentify", real_films / "dicom", "--workers", "1", "--quiet")
    inside = run(*words, "--out", tmp_path / "copies", "--id-map", tmp_path / "copies" / "ids.csv")
    assert_refused(inside, 2, "lies where the store is written")
    run(*words, "--out", tmp_path / "copies", "--id-map", tmp_path / "ids.csv")
    rows = list(csv.DictReader((tmp_path / "ids.csv").read_text().splitlines()))
    report = list(csv.DictReader((tmp_path / "copies" / "report.csv").read_text().splitlines()))
    assert [row["uid"] for row in rows] == [row["uid"] for row in report]
    assert all(Path(row["path"]).is_file() for row in rows)


def test_the_public_data_sets_are_listed() -> None:
    answer = run("ingest", "--dataset", "list")
    assert (answer.code, answer.err) == (0, "")
    assert "nih-chestxray14" in answer.out and "node21" in answer.out


def test_a_public_data_set_that_is_not_known_or_not_there_is_wrong_use(tmp_path: Path) -> None:
    words = ("ingest", tmp_path, "--out", tmp_path / "films.lance")
    assert_refused(run(*words, "--dataset", "mnist"), 2, "mnist")
    assert_refused(run(*words, "--dataset", "node21"), 2, "node21")
    assert_refused(run(*words, "--dataset", "node21", "--table", "t.csv"), 2, "leave --table and --columns out")
    assert_refused(run(*words, "--cluster", "tcp://127.0.0.1:9", "--workers", 1), 2, "a --cluster has its own")


def test_films_become_a_store_and_unknown_labels_stay_unknown(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "films.lance"
    words = ("ingest", films, "--out", out, "--table", films / "labels.csv", "--columns", "labels=nodule")
    answer = run(*words, *ANY_PICTURE, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["films"] == 12 and json.loads(answer.out)["splits"] == {
        "train": 4,
        "val": 4,
        "test": 4,
    }
    notes, progress = answer.err.splitlines()
    assert notes == "note: columns of the table: patient=patient split=split labels=nodule path=file"
    assert progress.startswith("ingest: 12/12 films")
    labels = open_store(out).films["nodule"].tolist()
    assert [value for value in labels if value == value] == [1.0, 0.0] * 3 and len(labels) == 12


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ("empty", 2, "no image file in"),
        ("column", 2, "no column 'Finding'; it has file, patient, split, nodule"),
        ("uid", 2, "the file of row 1 occurs again in row 13"),
        ("place", 2, "is a file, not a folder"),
        ("split", 1, "1 patient is in more than one given split"),
        ("blank", 1, "none of the 1 films could be stored: 1 "),
    ],
)
def test_films_that_make_no_store_leave_nothing_behind(
    change: str, code: int, part: str, films: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(films, tmp_path / "films"))
    words: list[object] = ["--table", folder / "labels.csv", "--columns", "path=file"]
    out = tmp_path / "films.lance"
    if change in ("empty", "blank"):
        shutil.rmtree(folder)
        folder.mkdir()
        words = []
    if change == "blank":
        cv2.imwrite(str(folder / "blank.png"), np.full((64, 64), 128, np.uint8))
    if change == "column":
        words.append("class=Finding")
    if change in ("uid", "split"):
        added = "film00.png,P0,train,1" if change == "uid" else "other.png,P0,test,1"
        (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + f"{added}\n")
    if change == "place":
        out = folder / "labels.csv" / "films.lance"
    assert_refused(run("ingest", folder, "--out", out, *words, *ANY_PICTURE), code, part)
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


def test_a_part_that_fails_is_counted_and_the_rest_stored(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(films / "film00.png", folder)
    cv2.imwrite(str(folder / "blank.png"), np.full((64, 64), 128, np.uint8))
    answer = run("ingest", folder, "--out", tmp_path / "films.lance", *ANY_PICTURE, "--quiet")
    assert answer.code == 1
    assert answer.out.startswith("1 films of 1 patients stored") and "1 quarantined: " in answer.out
    table = tmp_path / "films.lance.quarantine.csv"
    assert answer.err == f"chess-cxr: 1 of 2 films could not be stored; {table} says why\n"
    assert len(table.read_text().splitlines()) == 2 and len(open_store(tmp_path / "films.lance")) == 1


@pytest.mark.real_films
def test_a_folder_of_broken_real_files_fails_with_its_reasons(real_films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    names = ("truncated_half.jpg", "truncated.png", "empty.png", "text.jpg", "lfs_pointer.png", "constant.png")
    for name in (*names, "bomb_60000x60000.png"):
        shutil.copy(real_films / "nasty" / "image" / name, folder)
    answer = run("ingest", folder, "--out", tmp_path / "films.lance", "--workers", 1)
    assert_refused(answer, 1, "none of the 7 films could be stored", "empty file")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


# Audit and de-identified copies


def test_an_audit_that_finds_a_leak_ends_with_code_1_and_shows_it(films: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(films, tmp_path / "films"))
    run("ingest", folder, "--out", tmp_path / "a.lance", "--site", "a", *ANY_PICTURE)
    run("ingest", folder, "--out", tmp_path / "b.lance", "--site", "b", *ANY_PICTURE)
    answer = run("audit", tmp_path / "a.lance", tmp_path / "b.lance", "--out", tmp_path / "audit", "--quiet")
    assert answer.code == 1
    assert answer.err.endswith("leaks across splits, stores or training lists were found\n")
    assert "across stores: 12 " in answer.out
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "lists.csv",
        "pairs.csv",
        "patients.csv",
        "report.html",
    ]


@pytest.mark.real_films
def test_copies_are_made_and_what_is_refused_is_counted(real_films: Path, tmp_path: Path) -> None:
    answer = run("deidentify", real_films / "dicom", "--out", tmp_path / "copies", "--workers", 1, "--quiet")
    assert answer.code == 1
    assert answer.out.startswith("6 films copied") and "2 of 8 films were not copied" in answer.err
    assert len(list((tmp_path / "copies").rglob("*.dcm"))) == 6


# Stores that do not fit


def test_a_store_of_another_version_is_refused(small_store: Path, tmp_path: Path) -> None:
    table = lance.dataset(str(small_store)).to_table()
    described = json.loads(table.schema.metadata[b"chess_cxr"]) | {"version": 4}
    future = table.replace_schema_metadata({"chess_cxr": json.dumps(described)})
    lance.write_dataset(future, str(tmp_path / "future.lance"))
    answer = run("embed", "pixels:4", tmp_path / "future.lance", "--out", tmp_path / "features.parquet")
    assert_refused(answer, 2, "has store format 4, this program reads 3; ingest it again")
    assert [path.name for path in tmp_path.iterdir()] == ["future.lance"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--labels", "stripes", "nodule"], ["small.lance has no label 'nodule'; it has stripes, spots"]),
        (["--metric", "kappa"], ["no metric named 'kappa'", "accuracy, balanced_accuracy, macro_f1, auroc, auprc"]),
        (["--encoders", "random:nothing_like_it@64"], ["timm has no network named 'nothing_like_it'"]),
    ],
)
def test_an_impossible_comparison_is_refused(
    options: list[str], parts: list[str], small_store: Path, tmp_path: Path
) -> None:
    encoders = () if "--encoders" in options else ("--encoders", "pixels:4")
    answer = run("evaluate", small_store, *encoders, *options, "--out", tmp_path / "result")
    assert_refused(answer, 2, *parts)
    assert list(tmp_path.iterdir()) == []


# Work done


def test_another_configuration_cannot_continue_a_run(encoder: Path, small_store: Path, config: Path) -> None:
    other = config.with_name("other.json")
    described = json.loads(config.read_text())
    other.write_text(json.dumps(described | {"training": described["training"] | {"steps": 9}}))
    run_folder = encoder.with_name("run")
    before = sorted((path, path.stat().st_mtime_ns) for path in run_folder.rglob("*"))
    answer = run("pretrain", small_store, "--config", other, "--out", run_folder)
    assert_refused(answer, 2, "training.steps was 3, is 9")
    assert sorted((path, path.stat().st_mtime_ns) for path in run_folder.rglob("*")) == before


def test_runs_are_listed_compared_and_shown(encoder: Path, small_store: Path, tmp_path: Path) -> None:
    first = encoder.with_name("run")
    listed = run("runs", first.parent)
    assert listed.code == 0 and "run" in listed.out and "finished" in listed.out and "3/3" in listed.out
    [described] = json.loads(run("runs", first.parent, "--json").out)
    assert (described["state"], described["step"], described["method"]) == ("finished", 3, "moco_v2")
    assert_refused(run("runs", "compare", first), 2, "name at least two runs")
    assert run("runs", "compare", first, first).out.startswith("The configurations are the same.")
    page = run("runs", "page", first, "--store", small_store, "--films", 2)
    assert page == Answer(0, f"{first / 'report.html'}\n", "")
    assert_refused(run("runs", "page", tmp_path), 2, "is not a run")
    assert_refused(run("runs", tmp_path / "nowhere"), 2, "there is no folder")


def test_a_run_is_planned_before_it_is_paid(config: Path, tmp_path: Path) -> None:
    planned = run("plan", "--images", "4.8e6", "--gpus", "8xH100", "--price", 3, "--json")
    assert planned.code == 0 and json.loads(planned.out)["steps"] == 3_750_000
    assert_refused(run("plan"), 2, "--images 4.8e6")
    assert_refused(run("plan", "--images", 10, "--gpus", "8xAbacus"), 2, "known: V100")
    elsewhere = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert_refused(run("plan", "--images", 10, **elsewhere), 2, "chess-cxr plan --calibrate")
    words = ("plan", "--images", 96, "--config", config)
    calibrated = run(*words, "--calibrate", "--seconds", 1, **elsewhere)
    assert calibrated.code == 0 and "calibrated: " in calibrated.err
    assert run(*words, **elsewhere).out == calibrated.out


def test_a_run_that_begins_from_nothing_that_exists_is_refused(small_store: Path, tmp_path: Path) -> None:
    answer = run("pretrain", small_store, "--out", tmp_path / "run", "--begin-from", tmp_path / "nowhere")
    assert_refused(answer, 2, "there is no encoder folder")


def test_an_encoder_describes_itself_as_json(encoder: Path) -> None:
    answer = run("weights", "show", encoder)
    assert answer.code == 0 and answer.err == ""
    assert json.loads(answer.out)["training"]["steps"] == 3 and json.loads(answer.out)["licence"] == "Apache-2.0"


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {shlex.quote(str(self.trace))}",)


def test_weights_with_code_in_them_are_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "evil.pth.tar"
    file.write_bytes(pickle.dumps({"epoch": 1, "state_dict": Evil(tmp_path / "ran")}, protocol=2))
    answer = run("weights", "import", file, "--out", tmp_path / "encoder")
    assert_refused(answer, 1, str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth.tar"]


def test_a_comparison_prints_numbers_and_writes_its_page(encoder: Path, small_store: Path, tmp_path: Path) -> None:
    answer = run(
        *("evaluate", small_store, "--encoders", f"ours={encoder}", "pixels:8", "--fractions", 1, "--draws", 2),
        *("--replicates", 20, "--reference", "pixels:8", "--synthetic", "--json", "--out", tmp_path / "result"),
    )
    assert answer.code == 0
    records = json.loads(answer.out)
    assert {record["encoder"] for record in records} == {"ours", "pixels:8"}
    assert {record["data_set"] for record in records} == {"small pictures (SYNTHETIC)"}
    assert [line.split(",")[0] for line in answer.err.splitlines()] == [
        "embed ours: 90/90",
        "embed pixels:8: 90/90",
        "probe: 2/2",
        "bootstrap: 2/2",
    ]
    page = (tmp_path / "result" / "report.html").read_text()
    assert "SYNTHETIC" in page and "--reference pixels:8 --synthetic" in page


def test_a_classifier_prints_its_results_as_json_and_nothing_else(small_store: Path, tmp_path: Path) -> None:
    words = ("finetune", "classify", "random:test_resnet@32", small_store, "--out", tmp_path / "model")
    answer = run(*words, "--quiet", "--json")
    assert answer.code == 0 and answer.err == ""
    result = json.loads(answer.out)
    assert result == json.loads((tmp_path / "model" / "result.json").read_text())
    assert result["encoder"] == "random:test_resnet@32#0"


def test_a_classifier_answers_for_files_and_says_which_it_cannot_read(
    small_store: Path, films: Path, real_films: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    made = run("finetune", "classify", "random:test_resnet@32", small_store, "--out", model, "--quiet")
    assert made.code == 0
    film = next((real_films / "jsrt" / "images").iterdir())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    answer = run("predict", model, film, broken, "--workers", 1, "--quiet")
    rows = list(csv.reader(answer.out.splitlines()))
    assert rows[0][:5] == ["film", "stripes", "spots", "reason", "flags"] and [row[0] for row in rows[1:]] == [
        str(film),
        str(broken),
    ]
    assert float(rows[1][1]) + float(rows[1][2]) == pytest.approx(1, abs=1e-5) and rows[1][3] == ""
    assert rows[2][1:3] == ["", ""] and rows[2][3]
    assert (answer.code, answer.err) == (
        1, "chess-cxr: 1 of 2 films could not be read; the table gives the reasons\n"
    )  # fmt: skip
    [record] = json.loads(run("predict", model, film, "--json", "--quiet").out)
    assert record["stripes"] == pytest.approx(float(rows[1][1]), abs=1e-5)
    assert_refused(run("predict", small_store.parent, film), 2, "is no model")
    shown = run("predict", model, film, broken, "--saliency", tmp_path / "shown", "--quiet")
    assert shown.out == answer.out
    [picture] = (tmp_path / "shown").iterdir()
    assert picture.name == f"{film.stem}_saliency.png" and cv2.imread(str(picture)).std() > 10
    [row] = chess_cxr.predict(model, [film])
    assert row == record


def test_uncertain_labels_are_told_by_finding(small_store: Path, tmp_path: Path) -> None:
    words = ("finetune", "classify", "random:test_resnet@32", small_store, "--out", tmp_path / "model", "--quiet")
    assert_refused(run(*words, "--uncertain", "stripes=maybe"), 2, "no policy for uncertain labels named 'maybe'")
    assert_refused(run(*words, "--uncertain", "ones", "zeros"), 2, "should be FINDING=POLICY")
    assert run(*words, "--uncertain", "stripes=ones", "spots=zeros", "--task", "multilabel").code == 0


def test_features_are_written(encoder: Path, small_store: Path, tmp_path: Path) -> None:
    answer = run("embed", encoder, small_store, "--out", tmp_path / "features.parquet")
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'features.parquet'}\n")
    assert [line.split(",")[0] for line in answer.err.splitlines()] == ["embed: 96/96 films"]


def test_a_preset_beside_a_configuration_is_not_passed_over_in_silence(
    config: Path, small_store: Path, tmp_path: Path
) -> None:
    words = ("pretrain", small_store, "--out", tmp_path / "run", "--config", config, "--preset", "demo")
    assert_refused(run(*words), 2, "give --preset or --config, not both")


# Bone suppression

BONES = ("--size", 64, "--crop", 64, "--decoder", "tiny", "--perceptual", "none", "--steps", 3, "--batch", 2)


@pytest.fixture(scope="module")
def bone_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("bones") / "model"
    words = ("finetune", "bones", "random:regnetx_002@64", "phantom:8@64#1", "--out", model)
    answer = run(*words, *BONES, "--workers", 1, "--quiet", "--json")
    assert answer.code == 0 and answer.err == "", answer
    result = json.loads(answer.out)
    assert result == json.loads((model / "result.json").read_text())
    assert result["pairs"] == {"train": 6, "val": 0, "test": 2} and result["kinds"] == ["phantom"]
    return model


def test_a_bone_model_is_made_once(bone_model: Path) -> None:
    words = ("finetune", "bones", "random:regnetx_002@64", "phantom:8@64#1", "--out")
    assert_refused(run(*words, bone_model, *BONES), 2, "exists already")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("random:regnetx_002@64 --out model", "name a folder of pairs"),
        ("random:regnetx_002@64 absent --out model", "there is no folder absent"),
        ("random:regnetx_002@64 phantom:x --out model", "is not phantom:PATIENTS"),
        ("no/encoder phantom:4@64 --out model", "no/encoder"),
        ("random:regnetx_002@64 phantom:8@64 --out model --crop 64 --size 32", "crop <= size"),
        ("random:regnetx_002@64 phantom:8@64 --out model --perceptual chess", "chess needs the published file"),
    ],
)
def test_pairs_that_make_no_bone_model_are_told_in_one_line(words: str, part: str, tmp_path: Path) -> None:
    assert_refused(run("finetune", "bones", *words.split(), "--quiet", cwd=tmp_path), 2, part)
    assert list(tmp_path.iterdir()) == []


def test_a_bone_model_writes_films_and_says_which_it_cannot_read(
    bone_model: Path, real_films: Path, tmp_path: Path
) -> None:
    png = next((real_films / "jsrt" / "images").iterdir())
    dicom, broken = real_films / "dicom" / "RG3_J2KR.dcm", tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    answer = run(
        "predict", bone_model, png, broken, dicom, "--out", tmp_path / "out", "--sheets", "--burn-in", "--quiet"
    )
    rows = list(csv.reader(answer.out.splitlines()))
    assert rows[0] == ["film", "out", "reason"] and [row[0] for row in rows[1:]] == [str(png), str(broken), str(dicom)]
    assert [Path(row[1]).name for row in rows[1:]] == [f"{png.stem}.png", "", "RG3_J2KR.dcm"]
    assert [bool(row[2]) for row in rows[1:]] == [False, True, False]
    *doubts, last = answer.err.splitlines()
    assert (answer.code, last) == (1, "chess-cxr: 1 of 3 films could not be read; the table gives the reasons")
    assert [doubt.partition(": unlike the training films")[0] for doubt in doubts] == [
        f"chess-cxr: {film}" for film in (png, dicom)
    ]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{png.stem}.png", f"{png.stem}_sheet.png", "RG3_J2KR.dcm", "RG3_J2KR_sheet.png"}


def test_a_bone_model_needs_a_folder_for_its_films_and_a_classifier_none(
    bone_model: Path, small_store: Path, films: Path, tmp_path: Path
) -> None:
    film = films / "film00.png"
    assert_refused(run("predict", bone_model, film), 2, "a bone model writes films; name a folder for them with --out")
    classifier = tmp_path / "classifier"
    made = run("finetune", "classify", "random:test_resnet@32", small_store, "--out", classifier, "--quiet")
    assert made.code == 0
    for option in (("--out", tmp_path / "out"), ("--burn-in",), ("--sheets",)):
        assert_refused(run("predict", classifier, film, *option), 2, "are for bone models")


@pytest.mark.parametrize("change", [{"size": 10**9}, {"network": {"architecture": "evil"}}, {"tile": "a"}], ids=str)
def test_a_hostile_bone_model_is_one_line(
    change: dict[str, object], bone_model: Path, films: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(bone_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    assert_refused(run("predict", model, films / "film00.png", "--out", tmp_path / "out"), 1, str(model))
    assert not (tmp_path / "out").exists()
