from pathlib import Path

import pytest

from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.files import find_pairs
from places import touch


def complain(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        find_pairs(folder)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("films", "targets", "kind"),
    [
        ("source", "target", "folder"),
        ("SOURCE", "Target", "folder"),
        ("JSRT", "BSE_JSRT", "bse-jsrt"),
        ("jsrt", "Bse_Jsrt", "bse-jsrt"),
    ],
)
def test_films_are_paired_by_name_in_both_layouts_and_any_case(
    films: str, targets: str, kind: str, tmp_path: Path
) -> None:
    touch(tmp_path / films, "b.png", "JPCLN001.PNG", "c.dcm")
    touch(tmp_path / targets, "JPCLN001.png", "B.jpg", "c.nii.gz")
    pairs = find_pairs(tmp_path)
    assert [(p.name, p.film.name, p.bone_free.name) for p in pairs] == [
        ("b", "b.png", "B.jpg"),
        ("c", "c.dcm", "c.nii.gz"),
        ("JPCLN001", "JPCLN001.PNG", "JPCLN001.png"),
    ]
    assert {p.kind for p in pairs} == {kind}
    assert all(p.film.parent == tmp_path / films and p.bone_free.parent == tmp_path / targets for p in pairs)


def test_pairs_of_sub_folders_are_told_apart_by_their_path(tmp_path: Path) -> None:
    touch(tmp_path, "source/one/1.png", "source/two/1.png", "source/1.png")
    touch(tmp_path, "target/one/1.png", "target/Two/1.png", "target/1.png")
    pairs = find_pairs(tmp_path)
    assert [p.name for p in pairs] == ["1", "one/1", "two/1"]
    assert [p.bone_free for p in pairs] == [tmp_path / "target" / it for it in ("1.png", "one/1.png", "Two/1.png")]


def test_notes_hidden_files_and_other_folders_are_no_films(tmp_path: Path) -> None:
    touch(tmp_path, "source/a.png", "target/a.png", "source/README.txt", "target/.a.png", "pairs.csv", "old/b.png")
    assert [p.name for p in find_pairs(tmp_path)] == ["a"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "b.png")
    touch(tmp_path / "pairs", "source/a.png", "target/a.png")
    for side in ("source", "target"):
        (tmp_path / "pairs" / side / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert [p.name for p in find_pairs(tmp_path / "pairs")] == ["a"]


def test_a_film_without_its_partner_is_named_on_either_side(tmp_path: Path) -> None:
    touch(tmp_path, "source/a.png", "source/b.png", "source/c.png", "target/a.png")
    assert complain(tmp_path) == "2 of 3 films of source have no partner: b.png, c.png"
    touch(tmp_path, "target/b.png", "target/c.png", "target/d.png")
    assert complain(tmp_path) == "1 of 4 films of target have no partner: d.png"


def test_of_many_films_without_partners_a_few_are_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"source/{n}.png" for n in range(9)), "target/8.png")
    assert complain(tmp_path) == "8 of 9 films of source have no partner: 0.png, 1.png, 2.png, …"


def test_two_films_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "source/a.png", "source/A.jpg", "target/a.png")
    line = complain(tmp_path)
    assert line.startswith(f"{tmp_path / 'source'} holds two films named ") and line.endswith("; remove one of them")


def test_a_folder_that_is_there_in_two_spellings_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "source/a.png", "Source/b.png", "target/a.png")
    if len(list(tmp_path.iterdir())) == 2:
        pytest.skip("this file system does not tell spellings apart")
    assert complain(tmp_path) == f"{tmp_path} holds both Source and source; remove one of them"


def test_folders_that_hold_no_pairs_are_refused(tmp_path: Path) -> None:
    assert complain(tmp_path / "absent").startswith(f"there is no folder {tmp_path / 'absent'}")
    assert complain(touch(tmp_path, "film.png") / "film.png").startswith("there is no folder")
    assert (
        complain(tmp_path) == f"{tmp_path} holds no pairs: it needs the folders source and target, or JSRT and BSE_JSRT"
    )
    touch(tmp_path, "source/a.txt")
    assert complain(tmp_path) == f"{tmp_path} has source but no target"
    (tmp_path / "target").mkdir()
    assert complain(tmp_path) == "the folders source and target hold no film"


def test_half_of_the_bse_jsrt_layout_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "BSE_JSRT/a.png")
    assert complain(tmp_path) == f"{tmp_path} has BSE_JSRT but no JSRT"


def test_pairs_in_two_layouts_are_refused(tmp_path: Path) -> None:
    folder = touch(tmp_path, "source/a.png", "target/a.png", "JSRT/b.png", "BSE_JSRT/b.png")
    assert "two layouts" in complain(folder)


def test_a_name_is_the_same_however_its_accents_are_spelt(tmp_path: Path) -> None:
    folder = touch(tmp_path, "source/caf\u00e9.png", "target/cafe\u0301.png")
    assert len(find_pairs(folder)) == 1
