import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chess_cxr.audit.audit import audit_stores
from chess_cxr.audit.options import AuditOptions
from chess_cxr.audit.page import write_audit
from chess_cxr.audit.result import LIST_COLUMNS, PAIR_COLUMNS, PATIENT_COLUMNS
from chess_cxr.film_jpeg import encode_film
from chess_cxr.ingest.hashes import compute_hashes
from chess_cxr.records import ImageRecord, UsageError
from chess_cxr.store import Store, StoredFilm, open_store, write_store

QUICK = AuditOptions(thorough=False, threads=1)
THOROUGH = AuditOptions(thorough=True, threads=1)


def draw_picture(seed: int) -> np.ndarray:
    """A picture of blobs of several sizes, in [0, 1]."""
    rng = np.random.default_rng(seed)
    noise = sum(cv2.GaussianBlur(rng.normal(size=(200, 180)), (0, 0), sigma) * sigma for sigma in (2, 4, 16))
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def turn(picture: np.ndarray, degrees: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((90, 100), -degrees, 1)
    return np.asarray(cv2.warpAffine(picture, matrix, (180, 200)), np.float32)


def make_store(path: Path, films: Sequence[tuple[str, str, str, np.ndarray]]) -> Store:
    """Write a store of films given as uid, patient, split, picture."""

    def encode(uid: str, patient: str, split: str, picture: np.ndarray) -> StoredFilm:
        hashes = compute_hashes(picture)
        record = ImageRecord(uid=uid, patient=patient, split=split)
        return StoredFilm(record, *encode_film(picture, 512), hashes.pixel, hashes.perceptual)

    write_store(path, (encode(*film) for film in films), [], path.stem)
    return open_store(path)


def make_clean(path: Path, films: int = 8, first: int = 0) -> Store:
    """A store without any leak."""
    numbers = range(first, first + films)
    splits = ("train", "train", "val", "test")
    return make_store(path, [(f"{n:024x}", f"{n + 999:024x}", splits[n % 4], draw_picture(n)) for n in numbers])


def test_clean_stores_have_no_leak(tmp_path: Path) -> None:
    result = audit_stores(
        [make_clean(tmp_path / "a.lance"), make_clean(tmp_path / "b.lance", first=50)], options=THOROUGH
    )
    assert result.leaks == 0
    assert result.pairs.empty and result.patients.empty and result.lists.empty
    assert result.films == {"a.lance": 8, "b.lance": 8}
    assert "across splits: nothing" in result.as_text() and "No leak" in result.page and "SYNTHETIC" not in result.page


def test_a_patient_in_two_splits_is_a_leak_though_the_films_differ(tmp_path: Path) -> None:
    films = [("1" * 24, "a" * 24, "train", draw_picture(1)), ("2" * 24, "a" * 24, "test", draw_picture(2))]
    films += [("3" * 24, "b" * 24, "test", draw_picture(3)), ("4" * 24, "b" * 24, "test", draw_picture(4))]
    result = audit_stores([make_store(tmp_path / "s.lance", films)], options=QUICK)
    assert result.patients.to_dict("records") == [
        {"leak": "across splits", "patient": "a" * 24, "where": "s.lance: train, s.lance: test", "films": 2}
    ]
    assert result.leaks == 1 and result.pairs.empty


def test_patients_and_films_shared_by_stores_are_found_by_their_ids(tmp_path: Path) -> None:
    ours = make_store(tmp_path / "a.lance", [("1" * 24, "a" * 24, "train", draw_picture(1))])
    theirs = make_store(
        tmp_path / "b.lance",
        [("1" * 24, "a" * 24, "test", draw_picture(2)), ("9" * 24, "c" * 24, "test", draw_picture(3))],
    )
    result = audit_stores([ours, theirs], options=QUICK)
    assert result.pairs[["leak", "kind"]].to_numpy().tolist() == [["across stores", "same film"]]
    assert result.patients[["leak", "patient"]].to_numpy().tolist() == [["across stores", "a" * 24]]
    assert not any("in common" in note for note in result.notes)


def test_copies_are_found_in_every_quarter_turn_mirrored_and_inverted(tmp_path: Path) -> None:
    picture = draw_picture(0)
    copies = {
        "upright": picture**1.2,
        "turned 90°": np.rot90(picture, -1),
        "mirrored": picture[:, ::-1],
        "turned 180°, inverted": 1 - picture[::-1, ::-1],
    }
    films = [("0" * 24, "0" * 24, "train", picture)]
    for number, copy in enumerate(copies.values(), 1):
        films.append((f"{number:024x}", f"{number:024x}", "test", np.ascontiguousarray(copy)))
    films += [(f"{n:024x}", f"{n:024x}", "train", draw_picture(n)) for n in range(10, 20)]
    pairs = audit_stores([make_store(tmp_path / "s.lance", films)], options=QUICK).pairs
    ours = pairs[pairs["first_uid"] == "0" * 24].sort_values("second_uid")
    assert ours["transform"].str.replace("−180", "180").tolist() == list(copies)
    assert set(ours["kind"]) == {"near duplicate"} and set(ours["leak"]) == {"across splits"}
    assert ours["similarity"].min() > 0.95
    assert set(pairs["first_uid"]) | set(pairs["second_uid"]) == {f"{n:024x}" for n in range(5)}


def test_copies_turned_by_any_angle_and_cropped_are_found_when_thorough(tmp_path: Path) -> None:
    picture = draw_picture(0)
    copies = [turn(picture, 25), np.ascontiguousarray(1 - turn(picture, -40)[:, ::-1]), picture[20:160, 30:170]]
    films = [(f"{n:024x}", f"{n:024x}", "train", draw_picture(n)) for n in range(6)]
    films += [(f"{n:024x}", f"{n:024x}", "val", copy) for n, copy in enumerate(copies, 100)]
    store = make_store(tmp_path / "s.lance", films)
    thorough = audit_stores([store], options=THOROUGH)
    found = thorough.pairs[(thorough.pairs["first_uid"] == "0" * 24) & (thorough.pairs["leak"] == "across splits")]
    assert set(found["second_uid"]) == {f"{n:024x}" for n in (100, 101, 102)}
    assert thorough.thorough and not any("--thorough" in note for note in thorough.notes)
    quick = audit_stores([store], options=QUICK)
    assert len(quick.pairs) < len(thorough.pairs) and any("--thorough" in note for note in quick.notes)
    assert audit_stores([store], options=AuditOptions(threads=1)).pairs.equals(thorough.pairs)


def test_equal_films_are_told_from_near_ones_and_the_worst_leak_comes_first(tmp_path: Path) -> None:
    picture = draw_picture(0)
    films = [("1" * 24, "1" * 24, "train", draw_picture(5)), ("2" * 24, "2" * 24, "train", draw_picture(5))]
    films += [("3" * 24, "3" * 24, "train", picture), ("4" * 24, "3" * 24, "test", picture)]
    films += [("5" * 24, "5" * 24, "test", picture**1.3)]
    pairs = audit_stores([make_store(tmp_path / "s.lance", films)], options=QUICK).pairs
    told = pairs[["leak", "kind", "first_uid", "second_uid", "same_patient"]].to_numpy().tolist()
    assert told == [
        ["across splits", "same pixels", "3" * 24, "4" * 24, True],
        ["across splits", "near duplicate", "3" * 24, "5" * 24, False],
        ["within a split", "same pixels", "1" * 24, "2" * 24, False],
        ["within a split", "near duplicate", "4" * 24, "5" * 24, False],
    ]
    assert pairs["similarity"].notna().all()


def test_every_one_of_many_copies_is_paired_with_each_split_that_holds_another(tmp_path: Path) -> None:
    films = [(f"{n:024x}", f"{n:024x}", "train" if n > 2 else "test", draw_picture(0)) for n in range(30)]
    result = audit_stores([make_store(tmp_path / "s.lance", films)], options=QUICK)
    assert len(result.pairs) == 29 + 28
    assert result.counts["across splits"]["same pixels"] == 27 + 2
    assert {*result.pairs["first_uid"], *result.pairs["second_uid"]} == {film[0] for film in films}


def test_the_similarity_of_a_duplicate_can_be_chosen(tmp_path: Path) -> None:
    one, other = draw_picture(0), draw_picture(1)
    films = [("1" * 24, "1" * 24, "train", one), ("2" * 24, "2" * 24, "test", 0.75 * one + 0.25 * other)]
    store = make_store(tmp_path / "s.lance", films)
    loose = AuditOptions(thorough=False, threads=1, hash_similarity=0.5)
    similarity = float(audit_stores([store], options=loose).pairs["similarity"].iloc[0])
    assert 0.72 < similarity < 0.98
    for chosen, kind in ((similarity - 0.02, "near duplicate"), (min(similarity + 0.02, 1.0), "one patient?")):
        options = replace(loose, similarity=0.1, duplicate_similarity=chosen)
        assert audit_stores([store], options=options).pairs["kind"].tolist() == [kind]
    strict = replace(loose, similarity=0.999, duplicate_similarity=similarity - 0.02)
    assert len(audit_stores([store], options=strict).pairs) == 1
    with pytest.raises(UsageError, match="is not between 0 and 1"):
        audit_stores([store], options=AuditOptions(duplicate_similarity=1.5))


def test_duplicates_within_a_split_are_told_but_are_no_leak(tmp_path: Path) -> None:
    films = [("1" * 24, "1" * 24, "train", draw_picture(0)), ("2" * 24, "2" * 24, "train", draw_picture(0) ** 1.2)]
    result = audit_stores([make_store(tmp_path / "s.lance", films)], options=QUICK)
    assert result.leaks == 0
    assert result.counts["within a split"]["near duplicate"] == 1


def test_training_lists_of_every_form_are_compared_and_only_held_out_films_are_leaks(tmp_path: Path) -> None:
    store = make_clean(tmp_path / "s.lance")
    uid, split = store.films["uid"], store.films["split"]
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "training_uids.txt").write_text("\n".join(uid[split == "train"]), "utf-8")
    test_row = int(np.flatnonzero(split == "test")[0])
    pixel_hash = store.read_hashes()["pixel_hash"][test_row]
    (tmp_path / "list.csv").write_text(f'name,"hash"\nMRN-4711,"{pixel_hash}"\nother,{uid[0]}\n', "utf-8")
    (tmp_path / "foreign.txt").write_text("MRN-4711\n", "utf-8")
    lists = [encoder, tmp_path / "list.csv", tmp_path / "foreign.txt"]
    result = audit_stores([store], lists, QUICK)
    assert result.lists.to_numpy().tolist() == [
        [True, "list.csv", "s.lance", "test", 1, "pixel hash"],
        [False, "encoder", "s.lance", "train", 4, "uid"],
        [False, "list.csv", "s.lance", "train", 1, "uid"],
    ]
    assert result.leaks == 1
    assert any(note.startswith("foreign.txt: none of its 1 entries") for note in result.notes)
    assert "MRN-4711" not in result.page + result.as_text() + json.dumps(result.as_json())
    with pytest.raises(UsageError, match="cannot read the training list .*missing.txt: No such file"):
        audit_stores([store], [tmp_path / "missing.txt"], QUICK)


def test_stores_that_share_no_id_are_said_to_be_comparable_by_picture_only(tmp_path: Path) -> None:
    stores = [make_clean(tmp_path / "a.lance", 2), make_clean(tmp_path / "b.lance", 2, first=50)]
    assert any("no patient hash in common" in note for note in audit_stores(stores, options=QUICK).notes)


def test_films_without_hashes_are_counted_not_passed_over(small_store: Path) -> None:
    result = audit_stores([open_store(small_store)], options=QUICK)
    assert any(note.startswith("96 films have no hash") for note in result.notes)
    assert "(96 films), SYNTHETIC" in result.page


def test_the_files_agree_with_the_tables_and_hold_only_hashed_ids(tmp_path: Path) -> None:
    films = [(f"{n:024x}", "a" * 24, ("train", "test")[n % 2], draw_picture(n // 2)) for n in range(6)]
    stages = []
    store = make_store(tmp_path / "s.lance", films)
    result = audit_stores(
        [store], options=AuditOptions(thorough=True, shown=2, threads=1), on_progress=lambda *at: stages.append(at)
    )
    page = write_audit(result, tmp_path / "out")
    assert {path.name for path in page.parent.iterdir()} == {"pairs.csv", "patients.csv", "lists.csv", "report.html"}
    assert pd.read_csv(page.parent / "pairs.csv", dtype={"first_uid": str, "second_uid": str})[
        "first_uid"
    ].tolist() == (result.pairs["first_uid"].tolist())
    for name, columns in (("pairs", PAIR_COLUMNS), ("patients", PATIENT_COLUMNS), ("lists", LIST_COLUMNS)):
        assert tuple(pd.read_csv(page.parent / f"{name}.csv").columns) == columns
    text = page.read_text("utf-8")
    assert "1 more pair of less weight" in text and str(tmp_path) not in text
    assert len(re.findall(r"data:image/jpeg;base64,", text)) == 4
    assert {stage for stage, _, _ in stages} >= {"compare hashes", "find points", "compare points", "draw pairs"}
    json.dumps(result.as_json(), allow_nan=False)
    with pytest.raises(UsageError, match="exists already"):
        write_audit(result, tmp_path / "out")
    with pytest.raises(UsageError, match="at least one store"):
        audit_stores([])


@pytest.mark.real_films
def test_published_figures_and_bone_suppressed_films_are_found_among_their_originals(
    tmp_path: Path, real_films: Path
) -> None:
    cases = ("JPCLN098", "JPCNN016", "JPCNN084", "JPCNN059", "JPCLN006", "JPCLN067", "JPCLN139")
    paths = [real_films / "jsrt" / "images" / f"{case}.png" for case in cases]
    paths += sorted((real_films / "jsrt" / "images").glob("*.png"))[::12]
    figures = [real_films / "bone_pairs" / "source" / f"jsrtbse_fig{number}.png" for number in range(6)]
    figures += [real_films / "bone_pairs" / "source" / "JPCLN139_1.png"]

    def list_films(paths: Sequence[Path], split: str) -> list[tuple[str, str, str, np.ndarray]]:
        pictures = {path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) / np.float32(255) for path in paths}
        return [(name, name, split, picture) for name, picture in pictures.items()]

    ours = make_store(tmp_path / "jsrt.lance", list_films(paths, "train"))
    theirs = make_store(tmp_path / "figures.lance", list_films(figures, "test"))
    pairs = audit_stores([ours, theirs], options=AuditOptions(threads=1)).pairs
    across = pairs[(pairs["leak"] == "across stores") & (pairs["kind"] == "near duplicate")]
    found = dict(zip(across["second_uid"], across["first_uid"], strict=True))
    assert found == {path.stem: case for path, case in zip(figures, cases, strict=True)}
    assert len(across) == 7


@pytest.mark.real_films
def test_listed_near_duplicates_are_found_and_other_films_of_their_sets_are_not(
    tmp_path: Path, real_films: Path
) -> None:
    pool = pd.read_csv(real_films / "pool.csv").set_index("file")
    listed = pool["near_duplicate_of"].dropna().iloc[::4]
    names = [*dict.fromkeys([*listed.index, *listed, *pool[pool["set"] == "nih_covid"].index[5:400:8]])]
    number = {name: f"{place:024x}" for place, name in enumerate(names)}
    films = [
        (
            number[name],
            number[name],
            "train",
            cv2.imread(str(real_films / name), cv2.IMREAD_GRAYSCALE) / np.float32(255),
        )
        for name in names
    ]
    pairs = audit_stores([make_store(tmp_path / "pool.lance", films)], options=QUICK).pairs
    duplicates = pairs[pairs["kind"] != "one patient?"]
    found = {frozenset(pair) for pair in zip(duplicates["first_uid"], duplicates["second_uid"], strict=True)}
    assert {frozenset((number[one], number[other])) for one, other in listed.items()} <= found
    assert len(found) <= len(listed) + 2
