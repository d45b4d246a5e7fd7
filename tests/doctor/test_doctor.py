"""The doctor on this machine as it is, and with parts of it broken on purpose."""

import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from chess_cxr import cli
from chess_cxr.decode import dicom_codecs as dicom_decoders
from chess_cxr.decode.frames import find_rle_segments, read_frame_header
from chess_cxr.doctor import child, codecs, device, machine, packages, places, requirements
from chess_cxr.doctor.check import Check, Finding, Request, Step, take
from chess_cxr.doctor.machine import look_at_disk, read_memory_limit
from chess_cxr.doctor.packages import judge, judge_extra
from chess_cxr.doctor.render import render
from chess_cxr.doctor.requirements import Requirement, is_too_old, read_requirements
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import build_random_encoder
from chess_cxr.records import ChessError
from chess_cxr.store import open_store
from chess_cxr.tasks.classify.train import finetune_classifier
from places import CHECKOUT


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build_random_encoder("test_resnet", PixelContract(32, (0.5,), (0.25,)))
    out = tmp_path_factory.mktemp("doctor") / "encoder"
    return write_encoder(out, made.module.state_dict(), "test_resnet", made.contract, "CC0", made.training, ["ab" * 16])


def look(listing: Callable[[Request], Iterator[Step]], *paths: object) -> dict[str, Finding]:
    """Take the steps of a list in this process."""
    return {step.name: take(step).finding for step in listing(Request(tuple(map(str, paths))))}


def copy_tree(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


def hide(folder: Path, module: str, code: str) -> str:
    """Put a module of that name before the real one; returns the PYTHONPATH of a process that meets it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def get_broken(checks: Sequence[Check]) -> dict[str, Finding]:
    return {check.name: check.finding for check in checks if check.finding.status == "broken"}


# The whole of it


def test_everything_that_needs_no_child_is_well_on_this_machine(
    small_store: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "GEMM_SECONDS", 0.05)
    stages = [stage for stage in child.STAGES if stage != "imports"]  # some packages warn as they are imported
    request = Request((str(small_store), str(encoder)), CHECKOUT)
    checks = [take(step) for stage in stages for step in child.list_stage(stage, request) if isinstance(step, Step)]
    assert get_broken(checks) == {}
    names = [check.name for check in checks]
    assert names.index("device") > names.index(f"store {small_store}") > names.index("JPEG-LS")
    assert names[-1] == f"encoder {encoder}"
    found = {check.name: check.finding for check in checks}
    assert found["cores"].facts["usable_cores"] <= found["cores"].facts["machine_cores"] == os.cpu_count()
    assert found["GEMM peak"].facts["gflops"]["float32"] > 0.1


def test_a_torch_that_cannot_be_imported_breaks_what_needs_it_and_nothing_else(
    small_store: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = 'raise ImportError("libcudart.so.12: cannot open shared object file", name="torch")'
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path / "stub", "torch", code))
    assert cli.run(["doctor", str(small_store), str(encoder), "--out", str(tmp_path / "new"), "--json"]) == 1
    told = capsys.readouterr()
    result = json.loads(told.out)
    broken = [check["name"] for check in result["checks"] if check["status"] == "broken"]
    assert told.err == f"chess-cxr: {len(broken)} of {len(result['checks'])} checks found something broken\n"
    assert result["ok"] is False
    need_it = {"segmentation-models-pytorch", "timm", "torch", "torchvision", "device", "threads", "GEMM peak"}
    assert set(broken) == need_it | {"encoder folder", f"encoder {encoder}"}
    assert all("libcudart.so.12" in check["value"] for check in result["checks"] if check["status"] == "broken")
    assert all("'torch>=2.6'" in check["advice"] for check in result["checks"] if check["status"] == "broken")
    imported = [check["name"] for check in result["checks"] if check["group"] == "imports"]
    assert len(imported) == len([each for each in read_requirements() if not each.extra]) > 20
    assert not (tmp_path / "new").exists()


def test_all_well_is_code_0_and_wrong_use_is_code_2(
    small_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child.examine, "__defaults__", (("machine", "packages", "places"),))
    assert cli.run(["doctor", str(small_store)]) == 0
    told = capsys.readouterr()
    assert told.err == "" and "✗" not in told.out
    assert [line.split(":")[0] for line in told.out.splitlines()] == [
        *("✓ Python", "✓ cores", "✓ memory", "✓ disk", "✓ temporary disk", "✓ packages"),
        f"✓ store {small_store}",
    ]
    assert cli.run(["doctor", "--colour", "red"]) == 2


def test_what_is_nothing_of_ours_is_a_line_and_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child.examine, "__defaults__", (("places",),))
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.run(["doctor", str(tmp_path), str(tmp_path / "notes.txt"), str(tmp_path / "nowhere")]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"✗ {tmp_path}, {tmp_path / 'notes.txt'}: is no store, encoder, model or run: name one of these; films go to "
        "chess-cxr ingest",
        f"✗ {tmp_path / 'nowhere'}: does not exist: name a store, an encoder, a model or a run",
    ]
    assert told.err == "chess-cxr: 3 of 3 checks found something broken\n"


# What breaks the process


def test_a_library_that_crashes_is_a_line_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path / "stub", "simplejpeg", crash))
    checks = list(child.examine(Request(), ("DICOM decoders", "machine", "image decoders")))
    broken = get_broken(checks)
    assert list(broken) == ["DICOM decoders", "image decoders"]
    assert {finding.value for finding in broken.values()} == {"the process was ended by SIGSEGV here"}
    assert [check.name for check in checks[1:-1]] == ["Python", "cores", "memory", "disk", "temporary disk"]


def test_one_decoder_that_crashes_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real imagecodecs, one of whose functions ends the process."""
    code = "import os, sys\nsys.path.pop(0)\ndel sys.modules['imagecodecs']\nimport imagecodecs\n"
    code += "imagecodecs.jpegls_decode\n"  # loads it, or it would load itself over the next line
    code += "imagecodecs.jpegls_decode = lambda frame: os.abort()\n"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path / "stub", "imagecodecs", code))
    checks = list(child.examine(Request(), ("DICOM decoders",)))
    assert [check.name for check in checks] == [syntax.name for syntax in codecs.SYNTAXES]
    broken = get_broken(checks)
    assert list(broken) == ["JPEG-LS", "JPEG-LS near-lossless"]
    assert broken["JPEG-LS"].value == "the process was ended by SIGABRT here"
    assert [path.name for path in tmp_path.iterdir()] == ["stub"]  # nothing is left of the films that were tried
    assert broken["JPEG-LS"].advice.startswith("pip install --force-reinstall 'imagecodecs>=")


def test_a_library_that_hangs_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path / "stub", "simplejpeg", "import time\ntime.sleep(60)"))
    monkeypatch.setattr(child, "SECONDS_A_STEP", 1.0)
    [check] = child.examine(Request(), ("image decoders",))
    assert (check.name, check.finding.value) == ("image decoders", "the process did not answer for 1 seconds here")


def test_a_process_that_cannot_begin_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", hide(tmp_path / "stub", "json", "raise SystemExit(3)"))
    with pytest.raises(ChessError, match="ended with code 3 before it began"):
        list(child.examine(Request(), ("machine",)))


def test_without_a_temporary_folder_what_needs_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")
    temporary = look(machine.list_steps)["temporary disk"]
    assert (temporary.status, temporary.advice) == ("broken", "set TMPDIR to another folder")
    assert {finding.status for finding in look(codecs.list_image_steps).values()} == {"broken"}
    assert len(list(child.examine(Request(), ("machine",)))) == 5


# Decoders


def test_every_decoder_of_the_plugin_is_tried_with_a_stream_that_is_its_own() -> None:
    tried = {syntax.uid: syntax for syntax in codecs.SYNTAXES}
    assert set(dicom_decoders._DECODERS) < set(tried)
    for syntax in codecs.SYNTAXES:
        if syntax.encode is None:
            continue
        frame = syntax.encode(codecs.draw_picture(syntax.bits))
        header = read_frame_header(frame)
        if syntax.name == "RLE":
            assert header is None and find_rle_segments(frame) == 2
            continue
        family = {"JPEG lossless SV1": tried[syntax.uid].uid.rsplit(".", 1)[0] + ".57"}.get(syntax.name, syntax.uid)
        assert header is not None
        assert (header.syntax, header.precision, header.exact) == (family, syntax.bits, not syntax.lossy)


def test_a_decoder_that_returns_other_pixels_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = imagecodecs.jpegls_decode
    monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda frame: np.ascontiguousarray(real(frame)[:, ::-1]))
    found = look(codecs.list_dicom_steps)
    assert [name for name, finding in found.items() if finding.status == "broken"] == [
        "JPEG-LS",
        "JPEG-LS near-lossless",
    ]
    assert found["JPEG-LS"].value.startswith("comes back other than written, by ")


def test_one_wrong_bit_in_a_lossless_syntax_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = imagecodecs.jpeg2k_decode

    def flip(frame: bytes, **options: object) -> np.ndarray:
        stored = real(frame, **options).copy()
        stored[20, 30] ^= 1
        return stored

    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", flip)
    broken = {name for name, finding in look(codecs.list_dicom_steps).items() if finding.status == "broken"}
    assert broken == {"JPEG 2000 lossless", "HTJ2K lossless"}


def test_a_decoder_that_raises_is_found_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> np.ndarray:
        raise RuntimeError("no such codec in this build")

    monkeypatch.setattr(imagecodecs, "png_decode", fail)
    found = look(codecs.list_image_steps)
    assert {name for name, finding in found.items() if finding.status == "broken"} == {"PNG", "PNG of 16 bits"}
    assert "no such codec in this build" in found["PNG"].value


def test_an_encoder_that_is_absent_is_said_and_not_held_against_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> bytes:
        raise imagecodecs.DelayedImportError("htj2k_encode")

    monkeypatch.setattr(imagecodecs, "htj2k_encode", fail)
    found = look(codecs.list_dicom_steps)
    assert {name for name, finding in found.items() if finding.status != "ok"} == {"HTJ2K lossless", "HTJ2K"}
    assert found["HTJ2K"].status == "optional" and "not tried: no encoder is here" in found["HTJ2K"].value


def test_a_codec_that_is_not_built_in_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        available = False

    monkeypatch.setattr(imagecodecs, "JPEGLS", Absent)
    found = look(codecs.list_dicom_steps)
    assert found["JPEG-LS"] == Finding(
        "broken", "imagecodecs comes without JPEGLS", requirements.advise_reinstall("imagecodecs")
    )


# Stores, encoders, models, runs


def test_a_store_is_opened_counted_and_decoded(small_store: Path) -> None:
    [finding] = look(places.list_steps, small_store).values()
    assert finding.facts["films"] == 96 and sum(finding.facts["splits"].values()) == 96
    assert finding.value.startswith("96 films (train ") and "24 decoded, first and last among them" in finding.value


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_damaged_film_of_a_store_is_found(small_store: Path, tmp_path: Path, place: str) -> None:
    store = copy_tree(small_store, tmp_path / "damaged.lance")
    [data] = (store / "data").iterdir()
    content = bytearray(data.read_bytes())
    at = (content.find if place == "first" else content.rfind)(b"\xff\xd8\xff")
    content[at : at + 64] = bytes(64)
    data.write_bytes(content)
    [finding] = look(places.list_steps, store).values()
    assert finding.status == "broken" and finding.advice == "ingest it again"
    assert finding.value.startswith(f"1 of 24 films tried: film {0 if place == 'first' else 95}: ")


def test_a_store_without_its_data_is_found(small_store: Path, tmp_path: Path) -> None:
    store = copy_tree(small_store, tmp_path / "damaged.lance")
    for file in (store / "data").iterdir():
        file.unlink()
    [finding] = look(places.list_steps, store).values()
    assert finding.status == "broken" and "parts are missing or damaged" in finding.value


def test_an_encoder_tells_its_contract(encoder: Path) -> None:
    [finding] = look(places.list_network_steps, encoder).values()
    assert finding.status == "ok" and "32 x 32 x 1 pixels, CC0" in finding.value
    assert "1 hashed training film" in finding.value
    assert finding.facts["contract"]["mean"] == [0.5]


@pytest.mark.parametrize("file", ["model.safetensors", "golden.safetensors", "training_uids.txt"])
def test_a_changed_file_of_an_encoder_is_found(encoder: Path, tmp_path: Path, file: str) -> None:
    damaged = copy_tree(encoder, tmp_path / "encoder")
    content = bytearray((damaged / file).read_bytes())
    content[-3] ^= 1
    (damaged / file).write_bytes(content)
    [finding] = look(places.list_network_steps, damaged).values()
    assert finding.status == "broken" and f"{file} is not the file its config.json describes" in finding.value


def test_a_changed_contract_is_found_by_the_golden_embedding(encoder: Path, tmp_path: Path) -> None:
    damaged = copy_tree(encoder, tmp_path / "encoder")
    config = json.loads((damaged / "config.json").read_text())
    config["chess_cxr"]["contract"]["polarity"] = "bone_dark"
    (damaged / "config.json").write_text(json.dumps(config))
    [finding] = look(places.list_network_steps, damaged).values()
    assert finding.status == "broken" and "the pixel contract was changed" in finding.value


def test_a_run_with_a_broken_checkpoint_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = {"training": {"steps": 10, "batch": 4, "checkpoint_every": 5}, "method": {"name": "moco_v2"}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "checkpoints" / "step_00000010.safetensors").write_bytes(b"half")
    [finding] = look(places.list_steps, run).values()
    assert finding.status == "broken" and "step_00000010.safetensors cannot be read" in finding.value


def test_an_interrupted_fine_tuning_is_no_model_yet(tmp_path: Path) -> None:
    (tmp_path / "model" / "run").mkdir(parents=True)
    (tmp_path / "model" / "run" / "config.json").write_text("{}")
    [finding] = look(places.list_steps, tmp_path / "model").values()
    assert (finding.status, finding.advice) == ("broken", "the same finetune command continues it")


def test_a_classifier_tells_its_labels(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    finetune_classifier(
        build_random_encoder("test_resnet", PixelContract(32, (0.5,), (0.25,))), open_store(small_store), out
    )
    [finding] = look(places.list_network_steps, out).values()
    assert finding == Finding(
        "ok",
        "classifier of stripes, spots; loads on cpu",
        facts={"task": "classify", "device": "cpu", "labels": ("stripes", "spots")},
    )


# Packages


def test_extras_are_those_of_the_metadata() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = look(packages.list_extra_steps)
    assert set(extras) == {f"extra {name}" for name, needed in project["optional-dependencies"].items() if needed}
    assert set(look(packages.list_steps)) == {
        requirements.normalise_name(line.split(">=")[0].strip()) for line in project["dependencies"]
    }


def test_no_requirement_has_a_marker_that_is_not_understood() -> None:
    for line in metadata.requires("chess-cxr") or ():
        assert not line.partition(";")[2] or requirements._EXTRA.fullmatch(line.partition(";")[2].strip())


def test_missing_and_old_packages_are_told_with_what_to_do() -> None:
    assert judge(Requirement("no-such-package", ">=1.2", "")) == Finding(
        "broken", "is missing", "pip install 'no-such-package>=1.2'"
    )
    old = judge(Requirement("numpy", ">=999", ""))
    assert (old.status, old.advice) == ("broken", "pip install --upgrade 'numpy>=999'")
    assert judge(Requirement("numpy", ">=1", "")).status == "ok"
    lacking = judge_extra("big", [Requirement(f"no-such-package-{n}", "", "big") for n in range(6)])
    assert lacking.status == "optional" and lacking.advice == "pip install 'chess-cxr[big]'"
    assert lacking.value == (
        "no-such-package-0, no-such-package-1, no-such-package-2, no-such-package-3 and 2 more are missing (optional)"
    )


@pytest.mark.parametrize(
    ("version", "specifier", "old"),
    [
        ("2.6", ">=2.6.0", False),
        ("2.14.1+cu130", ">=2.6", False),
        ("2.5.9", ">=2.6", True),
        ("1.0", ">=1.0.1,<2", True),
        ("1.0", "", False),
        ("2026.3.6", ">=2026.10", True),
    ],
)
def test_versions_are_compared_by_number(version: str, specifier: str, old: bool) -> None:
    assert is_too_old(version, specifier) == old


# The machine


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_smallest_memory_limit_of_all_groups_counts(tmp_path: Path, kind: str) -> None:
    line, base, name = {
        "v1": ("4:cpu,memory:/a/b", "memory", "memory.limit_in_bytes"),
        "v2": ("0::/a/b", "", "memory.max"),
    }[kind]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:cpuset:/\n{line}\n")
    assert read_memory_limit(tmp_path) is None
    folder = tmp_path / "sys/fs/cgroup" / base
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / name).write_text("max\n" if kind == "v2" else f"{(1 << 63) - 4096}\n")
    assert read_memory_limit(tmp_path) is None
    (folder / "a" / name).write_text("2147483648\n")
    (folder / name).write_text("4294967296\n")
    assert read_memory_limit(tmp_path) == 2 << 30


def test_disks_that_are_full_or_cannot_be_written_are_broken(tmp_path: Path) -> None:
    assert look_at_disk(tmp_path / "new" / "folder", 1, "").status == "ok"
    assert list(tmp_path.iterdir()) == []
    full = look_at_disk(tmp_path, 1 << 60, "name another")
    assert (full.status, full.advice) == ("broken", "make room, or name another")
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in look_at_disk(tmp_path / "file", 1, "").value
    assert "cannot be written to" in look_at_disk(Path("/proc/self"), 1, "").value


# How it is told


def test_lines_in_a_terminal_without_signs_stay_readable() -> None:
    checks = [
        Check("Python", "", Finding("ok", "3.12")),
        Check("extra wandb", "", Finding("optional", "wandb is missing (optional)", "pip install it")),
        Check("RLE", "DICOM decoders", Finding("ok", "to the bit", facts={"lossy": False})),
        Check("JPEG", "DICOM decoders", Finding("ok", "", facts={"lossy": True, "largest_difference_of_255": 2.04})),
        Check("HTJ2K", "DICOM decoders", Finding("broken", "fails", "pip install it")),
        Check("store größe\udcff", "", Finding("broken", "fails", "ingest it again")),
    ]
    text = [
        "Python: 3.12",
        "extra wandb: wandb is missing (optional): pip install it",
        "DICOM decoders: 2 of 3 transfer syntaxes written, read and compared: RLE, JPEG (1 to the bit, 1 lossy within "
        "2.0 of 255 grey levels)",
        "DICOM decoders: HTJ2K: fails: pip install it",
    ]
    assert list(render(checks))[:4] == [f"{mark} {line}" for mark, line in zip("✓–✓✗", text, strict=True)]
    marks = ("ok  ", "-   ", "ok  ", "FAIL")
    plain = list(render(checks, "ascii"))
    assert plain[:4] == [f"{mark} {line}" for mark, line in zip(marks, text, strict=True)]
    assert plain[4] == r"FAIL store gr\xf6\xdfe\udcff: fails: ingest it again"


def test_a_line_is_told_before_the_next_look_begins() -> None:
    looked = []

    def examine() -> Iterator[Check]:
        for name in ("first", "second"):
            looked.append(name)
            yield Check(name, "", Finding("ok", "well"))

    lines = render(examine())
    assert next(lines) == "✓ first: well" and looked == ["first"]


def test_a_check_survives_json() -> None:
    check = Check("JPEG", "DICOM decoders", Finding("broken", "fails", "do it", {"number": 1}))
    assert Check.from_json(json.loads(json.dumps(check.as_json()))) == check


def test_a_panic_of_a_library_is_what_was_found() -> None:
    class PanicException(BaseException):
        pass

    def panic() -> Finding:
        raise PanicException("index out of bounds\nsecond line")

    check = take(Step("store", panic, advice="ingest it again"))
    assert check.finding == Finding("broken", "PanicException: index out of bounds", "ingest it again")
