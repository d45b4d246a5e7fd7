import csv
import math
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from chess_cxr.deidentify.identity import hash_id
from chess_cxr.ingest import pipeline
from chess_cxr.ingest.options import IngestOptions, QualityOptions
from chess_cxr.ingest.pipeline import BYTES_A_ROW
from chess_cxr.ingest.split import assign_split
from chess_cxr.records import ChessError, SourceFilm, UsageError
from chess_cxr.store import StoreWriter, open_store
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import WORKER_DIED, build_ingest_pool
from shared_child import ingest_films

KEY = b"a key of more than sixteen bytes"
# The films below are ramps, which the judge rightly takes for no chest films: they are to be stored all the same.
KEEP_ALL = QualityOptions(quarantine_not_chest=False)
OPTIONS = IngestOptions(id_key=KEY, dataset="made", longest_side=64, quality=KEEP_ALL)


def write_films(folder: Path, count: int, patients: int = 0) -> list[SourceFilm]:
    """Write films of 64 by 96 pixels, `patients` of them in turn or unknown ones."""
    folder.mkdir(exist_ok=True)
    films = []
    for number in range(count):
        ramp = np.linspace(number, 255, 64 * 96).reshape(64, 96).astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(ramp).save(path)
        patient = f"SECRET-{number % patients}" if patients else ""
        films.append(SourceFilm(path=path, uid=path.name, patient=patient, labels={"odd": float(number % 2)}))
    return films


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def list_names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def read_everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def stop_after(films: int, seen: list[int] | None = None) -> Callable[[], None]:
    """Return a callback that interrupts the ingest at its so many-th film."""
    seen = [] if seen is None else seen

    def stop() -> None:
        seen.append(1)
        if len(seen) == films:
            raise KeyboardInterrupt

    return stop


def test_films_end_in_the_store_in_their_order_with_their_labels(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 12, patients=5)
    summary = ingest_films(films, tmp_path / "s.lance", OPTIONS)
    stored = open_store(tmp_path / "s.lance").films
    assert list(stored["uid"]) == [hash_id(KEY, "uid", film.uid) for film in films]
    assert list(stored["patient"]) == [hash_id(KEY, "patient", film.patient) for film in films]
    assert list(stored["odd"]) == [0, 1] * 6
    assert set(stored["site"]) == {"made"}
    assert set(zip(stored["height"], stored["width"], strict=True)) == {(43, 64)}
    assert (summary.films, summary.patients, summary.patients_unknown) == (12, 5, 0)
    assert summary.splits == Counter(stored["split"])
    assert read_rows(tmp_path / "s.lance.quarantine.csv") == []


def test_the_executor_changes_nothing_in_the_store(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 10)
    pipeline.ingest_films(films, tmp_path / "here.lance", OPTIONS)
    with build_ingest_pool(2) as pool:
        ingest_films(films, tmp_path / "there.lance", OPTIONS, pool)
    here, there = (open_store(tmp_path / name) for name in ("here.lance", "there.lance"))
    assert here.films.equals(there.films)
    assert here.read_jpegs(range(10)) == there.read_jpegs(range(10))


def test_no_original_identifier_and_no_path_is_written_anywhere_but_into_the_id_map(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 6, patients=3)
    films = [replace(film, uid=f"SECRET-uid-{film.uid}", study=f"SECRET-study-{film.uid}") for film in films]
    (tmp_path / "raw" / "5.png").write_bytes(b"broken")
    out = tmp_path / "out"
    ingest_films(films, out / "s.lance", replace(OPTIONS, id_map=tmp_path / "map" / "ids.csv"))
    everything = read_everything(out)
    assert len(everything) > 1000
    for secret in (b"SECRET", b"raw", b"5.png"):
        assert secret not in everything
    named = read_rows(tmp_path / "map" / "ids.csv")
    assert named == [{"uid": hash_id(KEY, "uid", film.uid), "path": str(film.path)} for film in films]
    assert stat.S_IMODE((tmp_path / "map" / "ids.csv").stat().st_mode) == 0o600


def test_films_that_cannot_be_decoded_are_quarantined_with_their_reason(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 8)
    films[1].path.write_bytes(b"text")
    films[3].path.unlink()
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(films[6].path)
    steps = []
    summary = ingest_films(films, tmp_path / "s.lance", OPTIONS, on_film=lambda: steps.append(1))
    reasons = {1: "not a DICOM, PNG, JPEG, TIFF, WebP, NIfTI or MetaImage file", 3: "file not found", 6: "blank image"}
    assert read_rows(tmp_path / "s.lance.quarantine.csv") == [
        {"uid": hash_id(KEY, "uid", films[number].uid), "reason": reason} for number, reason in reasons.items()
    ]
    assert summary.quarantined == dict.fromkeys(reasons.values(), 1)
    assert summary.films == 5
    assert len(steps) == 8
    assert "3 quarantined: 1 blank image, 1 file not found" in summary.as_text()


def test_splits_are_those_of_the_original_patient_whatever_the_key(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 40, patients=20)
    splits = []
    for number, key in enumerate((KEY, KEY[::-1])):
        ingest_films(films, tmp_path / f"{number}.lance", replace(OPTIONS, id_key=key, seed=3, stratify=False))
        splits.append(list(open_store(tmp_path / f"{number}.lance").films["split"]))
    assert splits[0] == splits[1] == [assign_split(film.patient, 3, 0.1, 0.2) for film in films]
    assert len(set(splits[0])) == 3


def test_each_split_has_its_share_of_every_label_whatever_the_order_of_the_films(tmp_path: Path) -> None:
    films = [replace(film, labels={"rare": float(n < 10)}) for n, film in enumerate(write_films(tmp_path / "raw", 50))]
    films = [replace(film, patient=f"p{n}") for n, film in enumerate(films)]
    options = replace(OPTIONS, val=0.2, test=0.2)
    ingest_films(films, tmp_path / "a.lance", options)
    ingest_films(films[::-1], tmp_path / "b.lance", options)
    stored = open_store(tmp_path / "a.lance").films
    assert stored[stored["rare"] == 1]["split"].value_counts().to_dict() == {"train": 6, "val": 2, "test": 2}
    assert stored["split"].value_counts().to_dict() == {"train": 30, "val": 10, "test": 10}
    again = open_store(tmp_path / "b.lance").films
    assert stored.set_index("uid")["split"].to_dict() == again.set_index("uid")["split"].to_dict()


def test_a_given_split_wins_and_holds_for_all_films_of_its_patient(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 30, patients=10)
    films[0] = replace(films[0], split="val")
    films[11] = replace(films[11], split="test")
    ingest_films(films, tmp_path / "s.lance", OPTIONS)
    splits = list(open_store(tmp_path / "s.lance").films["split"])
    assert {splits[row] for row in (0, 10, 20)} == {"val"}
    assert {splits[row] for row in (1, 11, 21)} == {"test"}


def test_films_of_unknown_patients_are_patients_of_their_own(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 9)
    films[0] = replace(films[0], patient="1.png")  # a real patient named like another film
    summary = ingest_films(films, tmp_path / "s.lance", OPTIONS)
    assert open_store(tmp_path / "s.lance").films["patient"].nunique() == 9
    assert (summary.patients, summary.patients_unknown) == (9, 8)
    assert "8 of them name no patient" in summary.as_text()


@pytest.mark.real_films
def test_the_header_fills_what_the_source_leaves_open(tmp_path: Path, real_films: Path) -> None:
    path = real_films / "dicom" / "siim_850819.dcm"
    films = [SourceFilm(path, "open"), SourceFilm(path, "filled", patient="p", view="AP", age_years=30.0, sex="F")]
    ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, longest_side=256))
    stored = open_store(tmp_path / "s.lance").films
    assert list(stored["view"]) == ["PA", "AP"]
    assert list(stored["age_years"]) == [62, 30]
    assert list(stored["sex"]) == ["M", "F"]
    assert stored["spacing_mm"].tolist() == pytest.approx([0.672, 0.672])
    assert stored["patient"][0] != stored["uid"][0]
    assert stored["patient"][1] == hash_id(KEY, "patient", "p")


@pytest.mark.real_films
def test_a_patient_that_the_headers_put_into_two_given_splits_makes_no_complete_store(
    tmp_path: Path, real_films: Path
) -> None:
    path = real_films / "dicom" / "siim_850819.dcm"
    films = [SourceFilm(path, "1", split="train"), SourceFilm(path, "2", split="test")]
    with pytest.raises(ChessError, match="a patient whose films would be in two splits"):
        ingest_films(films, tmp_path / "s.lance", OPTIONS)
    with pytest.raises(UsageError, match="is not complete|is not a store"):
        open_store(tmp_path / "s.lance")


def test_a_patient_in_two_given_splits_leaves_nothing_behind(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 4, patients=2)
    films[0], films[2] = replace(films[0], split="train"), replace(films[2], split="val")
    with pytest.raises(ChessError, match="^1 patient is in more than one given split"):
        ingest_films(films, tmp_path / "s.lance", OPTIONS)
    assert list_names(tmp_path) == ["raw"]


def test_when_no_film_can_be_decoded_nothing_is_left_behind(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 3)
    for film in films:
        film.path.write_bytes(b"" if film.uid == "1.png" else b"text")
    with pytest.raises(ChessError) as caught:
        ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, id_map=tmp_path / "ids.csv"))
    assert "none of the 3 films could be stored: 2 not a DICOM" in str(caught.value)
    assert caught.value.exit_code == 1
    assert list_names(tmp_path) == ["raw"]


def test_an_interrupted_ingest_leaves_nothing_behind(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 30)
    seen = list[int]()
    with ThreadPoolExecutor(2) as pool, pytest.raises(KeyboardInterrupt):
        ingest_films(
            films, tmp_path / "s.lance", replace(OPTIONS, id_map=tmp_path / "ids.csv"), pool, stop_after(10, seen)
        )
    assert len(seen) == 10
    assert list_names(tmp_path) == ["raw"]


def test_an_ingest_that_was_stopped_reads_only_what_is_not_committed(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 30, patients=7)
    films[3].path.write_bytes(b"text")
    films[25].path.write_bytes(b"text")
    options = replace(OPTIONS, films_a_commit=4, in_flight=1)
    whole = ingest_films(films, tmp_path / "whole.lance", options)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, tmp_path / "s.lance", options, on_film=stop_after(15))
    with pytest.raises(UsageError, match="is not complete; run its ingest again"):
        open_store(tmp_path / "s.lance")
    assert not (tmp_path / "s.lance.quarantine.csv").exists()
    for film in films[:12]:
        film.path.unlink()  # proof that they are not read again
    counted = []
    summary = ingest_films(films, tmp_path / "s.lance", options, on_film=lambda: counted.append(1))
    assert len(counted) == 30
    assert summary.resumed == 12
    assert replace(summary, seconds=0, resumed=0) == replace(whole, seconds=0)
    stopped, uninterrupted = (open_store(tmp_path / name) for name in ("s.lance", "whole.lance"))
    assert stopped.films.equals(uninterrupted.films)
    assert stopped.read_jpegs(range(28)) == uninterrupted.read_jpegs(range(28))
    assert read_rows(tmp_path / "s.lance.quarantine.csv") == read_rows(tmp_path / "whole.lance.quarantine.csv")


def test_an_ingest_that_goes_on_with_other_options_or_another_key_is_wrong_use(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 8)
    options = replace(OPTIONS, films_a_commit=2)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, tmp_path / "s.lance", options, on_film=stop_after(5))
    for other in ({"longest_side": 48}, {"id_key": KEY[::-1]}, {"seed": 9}):
        with pytest.raises(UsageError, match="begun with other labels or options"):
            ingest_films(films, tmp_path / "s.lance", replace(options, **other))
    assert ingest_films(films, tmp_path / "s.lance", replace(options, in_flight=3, films_a_commit=5)).films == 8


def test_films_that_came_while_an_ingest_was_stopped_are_taken_in(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 12)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films[2:10], tmp_path / "s.lance", replace(OPTIONS, films_a_commit=3), on_film=stop_after(8))
    ingest_films(films, tmp_path / "s.lance", OPTIONS)
    stored = list(open_store(tmp_path / "s.lance").films["uid"])
    assert sorted(stored) == sorted(hash_id(KEY, "uid", film.uid) for film in films)


@pytest.mark.real_films
def test_a_patient_that_two_runs_put_into_two_splits_is_noticed(tmp_path: Path, real_films: Path) -> None:
    path = real_films / "dicom" / "siim_850819.dcm"
    films = [SourceFilm(path, str(n), split=split) for n, split in enumerate(("train", "test", "train", "train"))]
    options = replace(OPTIONS, films_a_commit=1, in_flight=1)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, tmp_path / "s.lance", options, on_film=stop_after(2))
    with pytest.raises(ChessError, match="a patient whose films would be in two splits"):
        ingest_films(films, tmp_path / "s.lance", options)
    with pytest.raises(UsageError, match="is not complete"):
        open_store(tmp_path / "s.lance")


@pytest.mark.parametrize("change", ["label", "split", "removed", "folder"])
def test_a_source_that_says_something_else_of_films_that_are_done_is_refused(tmp_path: Path, change: str) -> None:
    films = write_films(tmp_path / "raw", 8, patients=2)
    options = replace(OPTIONS, films_a_commit=2, in_flight=1)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, tmp_path / "s.lance", options, on_film=stop_after(6))
    changed = {
        "label": lambda: [replace(films[0], labels={"odd": 1.0}), *films[1:]],
        "split": lambda: [replace(film, split="test") for film in films],
        "removed": lambda: films[1:],
        "folder": lambda: [replace(film, path=tmp_path / "other" / film.path.name) for film in films],
    }[change]()
    with pytest.raises(UsageError, match="are not those that .* was begun with"):
        ingest_films(changed, tmp_path / "s.lance", options)
    assert ingest_films(films, tmp_path / "s.lance", options).resumed == 4


def test_films_that_another_writer_has_doubled_make_no_complete_store(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 4)
    out = tmp_path / "s.lance"

    def double() -> None:
        if len(rows := lance.dataset(str(out)).to_table()) == 2:
            lance.write_dataset(rows, str(out), mode="append")

    options = replace(OPTIONS, films_a_commit=2, in_flight=1)
    with pytest.raises(ChessError, match="2 films are in .* twice: two ingests wrote it at once"):
        ingest_films(films, out, options, on_film=double)
    with pytest.raises(UsageError, match="is not complete"):
        open_store(out)


@pytest.mark.parametrize("limits", [Limits(film_gib=math.nan), Limits(film_seconds=math.inf), Limits(film_gib=0)])
def test_limits_that_limit_nothing_are_wrong_use(tmp_path: Path, limits: Limits) -> None:
    with pytest.raises(UsageError, match="a film's limits must be above 0"):
        ingest_films(write_films(tmp_path / "raw", 1), tmp_path / "s.lance", replace(OPTIONS, limits=limits))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1])
def test_a_threshold_that_is_none_is_wrong_use(tmp_path: Path, wrong: float) -> None:
    options = replace(OPTIONS, quality=QualityOptions(contrast_flag=wrong))
    with pytest.raises(UsageError, match="quality.contrast_flag .* is not a threshold"):
        ingest_films(write_films(tmp_path / "raw", 1), tmp_path / "s.lance", options)


def test_two_ingests_into_one_store_do_not_meet(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 4)
    complaints = []

    def begin_another() -> None:
        with pytest.raises(ChessError, match="another ingest is writing") as caught:
            ingest_films(films, tmp_path / "s.lance", OPTIONS)
        complaints.append(str(caught.value))

    ingest_films(films, tmp_path / "s.lance", OPTIONS, on_film=begin_another)
    assert len(complaints) == 4
    assert len(open_store(tmp_path / "s.lance")) == 4


STEADY = """
import sys
from pathlib import Path
from chess_cxr.ingest.options import IngestOptions, QualityOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.workers.pool import WORKER_DIED, build_ingest_pool
from chess_cxr.sources.folder import read_folder
keep_all = QualityOptions(quarantine_not_chest=False)
options = IngestOptions(id_key=bytes(16), longest_side=64, films_a_commit=5, quality=keep_all)
films = read_folder([Path(sys.argv[1])])
with build_ingest_pool(1) as pool:
    ingest_films(films, Path(sys.argv[2]), options, pool)
"""


@pytest.mark.long
def test_an_ingest_killed_at_random_moments_ends_with_the_same_store(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 120)
    for number in (5, 50, 51, 119):
        films[number].path.write_bytes(b"text")
    command = [sys.executable, "-c", STEADY, str(tmp_path / "raw")]
    subprocess.run([*command, str(tmp_path / "whole.lance")], check=True, timeout=120)
    out = tmp_path / "s.lance"
    random = np.random.default_rng(11)
    kills = 0
    while not is_complete(out):
        process = subprocess.Popen([*command, str(out)])
        begun = count_versions(out)
        while process.poll() is None and count_versions(out) < begun + 2:
            time.sleep(0.005)
        # Later kills come later, so that a slow machine, too, gets past the last commit.
        time.sleep(random.uniform(0, 0.02 * (1 + kills)))
        kills += process.poll() is None
        process.kill()
        process.wait()
        assert kills < 80
    assert kills >= 4
    killed, whole = (open_store(tmp_path / name) for name in ("s.lance", "whole.lance"))
    assert killed.films.equals(whole.films)
    assert killed.read_jpegs(range(116)) == whole.read_jpegs(range(116))
    assert read_rows(tmp_path / "s.lance.quarantine.csv") == read_rows(tmp_path / "whole.lance.quarantine.csv")
    assert len(list((out / "data").iterdir())) == len(lance.dataset(str(out)).get_fragments())


def is_complete(store: Path) -> bool:
    try:
        open_store(store)
    except UsageError:
        return False
    return True


def count_versions(store: Path) -> int:
    return len(list((store / "_versions").glob("*.manifest"))) if store.exists() else 0


def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 3)
    (tmp_path / "ids.csv").write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, id_map=tmp_path / "ids.csv"))
    ingest_films(films, tmp_path / "s.lance", OPTIONS)
    before = read_everything(tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        ingest_films(films[:1], tmp_path / "s.lance", OPTIONS)
    assert read_everything(tmp_path) == before


@pytest.mark.parametrize("stratify", [True, False])
def test_patients_keep_their_split_when_films_are_added_meanwhile(tmp_path: Path, stratify: bool) -> None:
    films = write_films(tmp_path / "raw", 36, patients=12)
    more = [replace(film, patient="SECRET-new", labels={"odd": 1.0}) for film in write_films(tmp_path / "more", 6)]
    more = [replace(film, uid=f"more {film.uid}", patient=f"SECRET-{number}") for number, film in enumerate(more, 9)]
    options = replace(OPTIONS, films_a_commit=2, in_flight=1, stratify=stratify)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, tmp_path / "s.lance", options, on_film=stop_after(26))
    done = [film.as_py() for batch in read_parts(tmp_path / "s.lance") for film in batch["split"]]
    assert ingest_films([*films, *more], tmp_path / "s.lance", options).films == 42
    stored = open_store(tmp_path / "s.lance").films
    assert list(stored["split"][: len(done)]) == done
    assert stored.groupby("patient")["split"].nunique().max() == 1


def read_parts(store: Path) -> list[pa.RecordBatch]:
    return lance.dataset(str(store)).to_table(columns=["split"]).to_batches()


def test_films_with_a_split_and_films_without_one_go_together_where_nobody_names_a_patient(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 4)
    films[2:] = [replace(film, split="test") for film in films[2:]]
    summary = ingest_films(films, tmp_path / "s.lance", OPTIONS)
    assert (summary.films, summary.patients_unknown) == (4, 4)


@pytest.mark.real_films
@pytest.mark.parametrize("seed", range(4))
def test_a_patient_whom_headers_alone_name_is_in_one_split_or_stops_the_ingest_at_once(
    tmp_path: Path, real_films: Path, seed: int
) -> None:
    path = real_films / "dicom" / "siim_850819.dcm"
    given, open_ = SourceFilm(path, "1", split="test"), SourceFilm(path, "2")
    assert ingest_films([given, open_], tmp_path / "a.lance", replace(OPTIONS, seed=seed)).splits == {"test": 2}
    drawn = ingest_films([open_], tmp_path / "b.lance", replace(OPTIONS, seed=seed, stratify=False)).splits
    if drawn == {"test": 1}:
        assert ingest_films([open_, given], tmp_path / "c.lance", replace(OPTIONS, seed=seed)).splits == {"test": 2}
    else:
        with pytest.raises(ChessError, match="a patient whose films would be in two splits"):
            ingest_films([open_, given], tmp_path / "c.lance", replace(OPTIONS, seed=seed))


def test_only_films_that_are_still_to_come_need_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films = write_films(tmp_path / "raw", 20)
    options = replace(OPTIONS, films_a_commit=2, in_flight=1)
    with pytest.raises(KeyboardInterrupt):
        ingest_films(films, tmp_path / "s.lance", options, on_film=stop_after(18))
    size = len(open_film(tmp_path / "s.lance"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8 * (size + BYTES_A_ROW)))
    assert ingest_films(films, tmp_path / "s.lance", options).resumed == 16


def open_film(store: Path) -> bytes:
    return lance.dataset(str(store)).to_table(columns=["jpeg"])["jpeg"][0].as_py()


def test_a_film_that_is_named_twice_is_wrong_use(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 2)
    with pytest.raises(UsageError, match="^1 films have the uid of another"):
        ingest_films([*films, films[0]], tmp_path / "s.lance", OPTIONS)


def test_an_ingest_stopped_at_its_very_end_goes_on_with_the_same_id_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = write_films(tmp_path / "raw", 2)
    options = replace(OPTIONS, id_map=tmp_path / "ids.csv")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StoreWriter, "finish", interrupt)
        ingest_films(films, tmp_path / "s.lance", options)
    assert ingest_films(films, tmp_path / "s.lance", options).resumed == 2
    assert len(read_rows(tmp_path / "ids.csv")) == 2


def interrupt(writer: StoreWriter) -> None:
    raise KeyboardInterrupt


def test_stores_whose_names_differ_behind_a_full_stop_have_quarantines_of_their_own(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 3)
    films[0].path.write_bytes(b"text")
    ingest_films(films, tmp_path / "study.2020", OPTIONS)
    ingest_films(films[1:], tmp_path / "study.2021", OPTIONS)
    assert [len(read_rows(tmp_path / f"study.{year}.quarantine.csv")) for year in (2020, 2021)] == [1, 0]


@pytest.mark.parametrize("name", ["s.lance", "s.lance/ids.csv", "s.lance.quarantine.csv", "raw/../s.lance/a/ids"])
def test_an_id_map_where_the_store_is_written_is_wrong_use(tmp_path: Path, name: str) -> None:
    films = write_films(tmp_path / "raw", 2)
    with pytest.raises(UsageError, match="lies where the store is written"):
        ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, id_map=tmp_path / name))
    assert list_names(tmp_path) == ["raw"]


def test_an_id_map_that_cannot_be_written_stops_the_ingest_before_it_begins(tmp_path: Path) -> None:
    films = write_films(tmp_path / "raw", 2)
    with pytest.raises(UsageError, match="ids.csv cannot be written"):
        ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, id_map=tmp_path / "raw" / "0.png" / "a" / "ids.csv"))
    assert list_names(tmp_path) == ["raw"]


def test_no_store_is_complete_before_its_id_map_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films = write_films(tmp_path / "raw", 2)
    finish = StoreWriter.finish
    rows = []

    def look_and_finish(writer: StoreWriter) -> None:
        rows.extend(read_rows(tmp_path / "ids.csv"))
        finish(writer)

    monkeypatch.setattr(StoreWriter, "finish", look_and_finish)
    ingest_films(films, tmp_path / "s.lance", replace(OPTIONS, id_map=tmp_path / "ids.csv"))
    assert len(rows) == 2


@pytest.mark.parametrize("name", ["split", "uid", "height", "jpeg", "pixel_hash", "flag:inverted", ""])
def test_a_label_named_like_a_column_of_the_store_is_wrong_use(tmp_path: Path, name: str) -> None:
    films = [replace(film, labels={name: 1.0}) for film in write_films(tmp_path / "raw", 1)]
    with pytest.raises(UsageError, match="no label can be named"):
        ingest_films(films, tmp_path / "s.lance", OPTIONS)
    assert list_names(tmp_path) == ["raw"]


@pytest.mark.parametrize("name", ["q:z.lance", "a b.lance", "50%25.lance", "a#b?c.lance", "Röntgen.lance"])
def test_a_store_may_have_an_odd_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    films = write_films(tmp_path / "raw", 2)
    monkeypatch.chdir(tmp_path)
    ingest_films(films, Path(name), OPTIONS)
    assert len(open_store(Path(name)).read_films([0, 1])) == 2
    assert list_names(tmp_path) == sorted(["raw", name, f"{name}.quarantine.csv"])


@pytest.mark.parametrize("name", ["a\nb.lance", "a\x1b[2Jb.lance", "\udcff.lance"])
def test_a_name_that_cannot_be_printed_is_wrong_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be printed"):
        ingest_films(write_films(tmp_path / "raw", 1), tmp_path / name, OPTIONS)


@pytest.mark.parametrize(
    "wrong", [{"val": 0.6, "test": 0.5}, {"val": -0.1}, {"longest_side": 8}, {"in_flight": 0}], ids=str
)
def test_options_that_make_no_sense_are_wrong_use(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ingest_films(write_films(tmp_path / "raw", 2), tmp_path / "s.lance", replace(OPTIONS, **wrong))
    assert list_names(tmp_path) == ["raw"]


def test_no_film_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no film"):
        ingest_films([], tmp_path / "s.lance", OPTIONS)


FILL_UP = """
import os, resource, sys
from pathlib import Path
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # Python would leave the first half of a module's bytecode, for all to read
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from chess_cxr.ingest.options import IngestOptions, QualityOptions
from chess_cxr.ingest.pipeline import ingest_films
from chess_cxr.records import ChessError
from chess_cxr.sources.folder import read_folder
try:
    keep_all = QualityOptions(quarantine_not_chest=False)
    options = IngestOptions(id_key=bytes(16), longest_side=64, quality=keep_all)
    ingest_films(read_folder([Path(sys.argv[1])]), Path(sys.argv[2]), options)
except ChessError as error:
    sys.exit(f"{type(error).__name__} {error}")
"""


def test_a_file_system_that_takes_no_more_is_one_clear_line_and_nothing_is_kept(tmp_path: Path) -> None:
    write_films(tmp_path / "raw", 40)
    child = subprocess.run(
        [sys.executable, "-c", FILL_UP, str(tmp_path / "raw"), str(tmp_path / "s.lance")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 1
    assert child.stderr.startswith(f"ChessError no space left for {tmp_path / 's.lance'}")
    assert child.stderr.count("\n") == 1
    assert list_names(tmp_path) == ["raw"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("count", [60, 260])
def test_a_disk_that_is_too_small_is_one_clear_line_with_the_space_it_takes(small_disk: Path, count: int) -> None:
    random = np.random.default_rng(0)
    raw = small_disk.parent / "raw"
    raw.mkdir()
    films = [SourceFilm(raw / f"{number}.png", str(number)) for number in range(count)]
    for film in films:
        noise = random.integers(0, 256, (256, 256), dtype=np.uint8)
        Image.fromarray(noise).save(film.path, compress_level=0)
    with pytest.raises(ChessError) as caught:
        ingest_films(films, small_disk / "s.lance", replace(OPTIONS, longest_side=256))
    message = str(caught.value)
    assert message.startswith(f"no space left for {small_disk / 's.lance'}: it needs about {count * 0.06:.0f}"[:-1])
    assert message.endswith("MB; nothing was kept")
    assert list_names(small_disk) == []


@pytest.mark.real_films
def test_every_nasty_file_ends_as_its_manifest_expects(tmp_path: Path, real_films: Path) -> None:
    nasty = real_films / "nasty"
    expected = {row["file"]: row["expect"] for row in read_rows(nasty / "manifest.csv")}
    films = [SourceFilm(nasty / name, name) for name in expected]
    options = replace(OPTIONS, id_map=tmp_path / "ids.csv", limits=Limits(film_seconds=20, film_gib=2))
    with build_ingest_pool(2) as pool:
        summary = ingest_films(films, tmp_path / "s.lance", options, pool)
    assert summary.films + sum(summary.quarantined.values()) == len(expected) == 131
    names = {row["uid"]: str(Path(row["path"]).relative_to(nasty)) for row in read_rows(tmp_path / "ids.csv")}
    reasons = {names[row["uid"]]: row["reason"] for row in read_rows(tmp_path / "s.lance.quarantine.csv")}
    stored = open_store(tmp_path / "s.lance").films.set_index("uid").rename(index=names)
    assert set(reasons).isdisjoint(stored.index)
    wrong = [name for name, expect in expected.items() if not ends_as(name, expect, reasons)]
    assert [(name, expected[name], reasons.get(name)) for name in wrong] == []
    assert reasons["image/bomb_60000x60000.png"] == "more than 120 megapixels"
    assert stored.loc["image/inverted.png", "flag:inverted"]
    assert WORKER_DIED not in reasons.values()


def ends_as(name: str, expect: str, reasons: dict[str, str]) -> bool:
    """Return whether a file met what its manifest says; what it leaves open may end either way."""
    if "no crash" in expect or expect == "?" or expect.startswith(("reject or", "reject (or")):
        return True
    if expect.startswith("reject"):
        return name in reasons
    if expect == "flag":
        return name in reasons or name.startswith("image/inverted")
    if expect == "read (out of domain)":
        return name not in reasons or "chest" in reasons[name]
    return name not in reasons
