import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chess_cxr.files import locations
from chess_cxr.files.listing import build_link_check, find_kind, list_location
from chess_cxr.files.locations import NotAFile, TooLarge, get_filesystem, is_url, read_location, simplify_location
from chess_cxr.records import ChessError, UsageError
from chess_cxr.sources.folder import read_folder
from object_store import ObjectStore, run_object_store
from places import touch

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with run_object_store() as started:
        started.make_bucket("films")
        yield started


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def put(store: ObjectStore, *keys: str, content: bytes = b"x") -> None:
    for key in keys:
        with store.filesystem.open_output_stream(f"films/{key}") as file:
            file.write(content)


# ---------------------------------------------------------------- this machine


@pytest.mark.parametrize("code", ["EXPIRED_TOKEN", "INVALID_ACCESS_KEY_ID", "SLOW_DOWN", "SERVICE_UNAVAILABLE"])
def test_what_a_store_refuses_for_all_objects_is_no_fault_of_one(code: str) -> None:
    said = OSError(f"When reading information for key 'SECRET' in bucket 'b': AWS Error {code} during HeadObject")
    translated = locations.translate_error(said)
    assert isinstance(translated, ConnectionError)
    assert "SECRET" not in str(translated)


@pytest.mark.parametrize("text", ["s3://bucket/key", "gs://bucket", "file:///tmp/x", "abfss://a@b.example/c"])
def test_a_url_is_told_from_a_path(text: str) -> None:
    assert is_url(text)
    assert not any(map(is_url, [Path(text), "/tmp/x", "s3:/x", "C:\\films", "a/b://c", ""]))


def test_a_file_url_is_a_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a b#1.png").write_bytes(b"film")
    url = (tmp_path / "a b#1.png").as_uri()
    assert "%20" in url
    assert simplify_location(url) == tmp_path / "a b#1.png"
    assert read_location(url, 4) == b"film"
    assert list(list_location(tmp_path.as_uri())) == [(tmp_path / "a b#1.png", "a b#1.png")]
    with pytest.raises(UsageError, match="another machine"):
        read_location("file://elsewhere/film", 4)


@pytest.mark.parametrize("written", [str, Path])
def test_a_file_is_read_up_to_the_bytes_allowed(tmp_path: Path, written: type) -> None:
    (tmp_path / "film").write_bytes(b"film")
    assert read_location(written(tmp_path / "film"), 4) == b"film"
    with pytest.raises(TooLarge):
        read_location(written(tmp_path / "film"), 3)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "film").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLarge):
        read_location(tmp_path / "film", 1 << 30)


def test_folders_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for location in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotAFile):
            read_location(location, 100)


def test_a_file_that_is_absent_or_cannot_exist_is_not_found(tmp_path: Path) -> None:
    for location in (tmp_path / "absent", f"{tmp_path}/a\0b"):
        with pytest.raises(FileNotFoundError):
            read_location(location, 100)


def test_a_folder_is_listed_files_first_and_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2", "b/10", "a", "z", "b/c/1", "a-/1", ".hidden", ".git/1", "b/.x")
    relative = ["a", "z", "a-/1", "b/10", "b/2", "b/c/1"]
    assert list(list_location(tmp_path)) == [(tmp_path / path, path) for path in relative]
    assert [path for _, path in list_location(tmp_path, lambda name: name != "1")] == ["a", "z", "b/10", "b/2"]


def test_names_that_are_no_text_are_listed_and_read(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(b"film")
    ((location, relative),) = list_location(tmp_path)
    assert os.fsencode(relative) == b"\xff.png"
    assert read_location(location, 4) == b"film"


def test_links_in_a_circle_or_to_nothing_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1")
    for name, target in {
        "self": "self",
        "a": "b",
        "b": "a",
        "long": "n" * 300,
        "under": "1/x",
        "off": "absent",
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "deep").symlink_to("/".join(["x" * 200] * 20))
    assert [path for _, path in list_location(tmp_path)] == ["1"]


def test_a_file_whose_path_is_too_long_to_open_is_listed_all_the_same(tmp_path: Path) -> None:
    folder, started = os.open(tmp_path, os.O_RDONLY), tmp_path
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        folder = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
    os.close(os.open("film", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.symlink("film", "link", dir_fd=folder)
    ((location, relative),) = list_location(started)
    assert relative == "d" * 250 + ("/" + "d" * 250) * 19 + "/film"
    with pytest.raises(OSError, match="too long"):
        read_location(location, 100)


def test_stores_are_left_out_and_folders_that_are_only_named_so_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "1", "a/s.lance/_versions/1", "a/s.lance/data/2", "b.lance/3", "c.lance/_versions", "s/_versions/4")
    assert [path for _, path in list_location(tmp_path)] == ["1", "b.lance/3", "c.lance/_versions", "s/_versions/4"]


def test_a_link_check_tells_what_lies_outside_of_the_tree(tmp_path: Path) -> None:
    outside, root = touch(tmp_path / "outside", "x"), touch(tmp_path / "root", "a/1")
    (root / "b").symlink_to(root / "a")
    (root / "away").symlink_to(outside)
    (root / "a/x").symlink_to(outside / "x")
    leads_out = build_link_check(root)
    assert [leads_out(root / path) for path in ("a/1", "b/1", "a/x", "b/x", "away/x", "a/none", "away/none")] == [
        *(False, False, True, True, True, False, True)
    ]
    assert not build_link_check("s3://films")("s3://films/a")


def test_a_folder_that_vanishes_while_it_is_listed_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/1", "b/1")
    listed = list_location(tmp_path)
    next(listed)
    (tmp_path / "b/1").unlink()
    (tmp_path / "b").rmdir()
    with pytest.raises(FileNotFoundError):
        list(listed)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@films/x", "must not hold credentials"),
        ("s3://", "names no bucket"),
        ("nothing://films/x", "nothing:// locations cannot be opened"),
    ],
)
def test_a_url_that_cannot_be_used_is_wrong_use_and_is_not_repeated_with_its_secret(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_location(url, 100)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- object store


def test_objects_are_listed_as_files_are_and_read_by_what_was_listed(store: ObjectStore) -> None:
    names = ["b/2", "b/10", "a", "z", "b/c/1", "a-/1", "é #1%20?.png"]
    put(store, *(f"tree/{name}" for name in [*names, ".hidden", ".git/1"]))
    for root in ("s3://films/tree", "s3://films/tree/"):
        listed = list(list_location(root))
        assert [path for _, path in listed] == ["a", "z", "é #1%20?.png", "a-/1", "b/10", "b/2", "b/c/1"]
        assert [location for location, _ in listed] == [f"s3://films/tree/{path}" for _, path in listed]
        assert {read_location(location, 1) for location, _ in listed} == {b"x"}


def test_stores_among_the_objects_are_left_out(store: ObjectStore) -> None:
    put(store, "mixed/1", "mixed/a/s.lance/_versions/1", "mixed/a/s.lance/data/2", "mixed/b.lance/3")
    assert [path for _, path in list_location("s3://films/mixed")] == ["1", "b.lance/3"]


def test_more_objects_than_a_page_holds_are_all_listed(store: ObjectStore) -> None:
    names = [f"{number:05d}" for number in range(1003)]
    store.make_many(f"films/pages/{name}" for name in names)
    assert [path for _, path in list_location("s3://films/pages")] == names


def test_a_bucket_can_be_the_root(store: ObjectStore) -> None:
    store.make_bucket("small")
    with store.filesystem.open_output_stream("small/a/1") as file:
        file.write(b"x")
    assert list(list_location("s3://small")) == [("s3://small/a/1", "a/1")]
    assert find_kind("s3://small") == find_kind("s3://small/a") == "folder"
    assert find_kind("s3://small/a/1") == "file"
    assert find_kind("s3://small/b") == find_kind("s3://absent/b") == find_kind("s3://absent") == ""


def test_an_object_is_read_up_to_the_bytes_allowed(store: ObjectStore) -> None:
    put(store, "large", content=bytes(MEGABYTE))
    assert read_location("s3://films/large", MEGABYTE) == bytes(MEGABYTE)
    with pytest.raises(TooLarge):
        read_location("s3://films/large", MEGABYTE - 1)


@pytest.mark.parametrize("url", ["s3://films/absent", "s3://films/tree-without-objects/1", "s3://no-bucket/1"])
def test_what_is_not_there_is_not_found(store: ObjectStore, url: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_location(url, 100)
    with pytest.raises(FileNotFoundError):
        list(list_location(url))
    with pytest.raises(UsageError, match="does not exist"):
        read_folder([url])


def test_a_prefix_is_no_file(store: ObjectStore) -> None:
    with pytest.raises(NotAFile):
        read_location("s3://films", 100)


def test_no_permission_is_told_from_nothing_there_and_names_no_key(store: ObjectStore, tmp_path: Path) -> None:
    put(store, "jane_doe/1")
    listing = read_folder(["s3://films/jane_doe"])
    with store.refuse_strangers():
        for act in (lambda url: read_location(url, 100), lambda url: list(list_location(url)), find_kind):
            with pytest.raises(PermissionError) as caught:
                act("s3://films/jane_doe/1")
            assert "jane" not in str(caught.value)
        with pytest.raises(UsageError, match="^no permission to list s3://films; check the credentials"):
            read_folder(["s3://films"])
        with pytest.raises(UsageError, match="no permission to list"):
            list(listing)
        with pytest.raises(UsageError, match="no permission to read the table"):
            read_folder([tmp_path], "s3://films/labels.csv")


def test_a_store_that_does_not_answer_is_said_to(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError):
        read_location("s3://films/a", 100)
    with pytest.raises(ChessError, match="^the object store of s3://films cannot be reached") as caught:
        read_folder(["s3://films"])
    assert caught.value.exit_code == 1


def test_what_is_written_beside_a_store_is_read_again(store: ObjectStore, tmp_path: Path) -> None:
    for location in ("s3://films/beside/quarantine.csv", str(tmp_path / "quarantine.csv")):
        filesystem, path = get_filesystem(location)
        with filesystem.open_output_stream(path) as file:
            file.write(b"uid,reason\n")
        assert read_location(location, 100) == b"uid,reason\n"


@pytest.mark.real_films
def test_real_films_are_the_same_by_url_and_by_path(store: ObjectStore, real_films: Path) -> None:
    paths = sorted((real_films / "jsrt" / "images").iterdir())[:5]
    for path in paths:
        store.upload(path, f"films/jsrt/images/{path.name}")
    films = list(read_folder(["s3://films/jsrt"]))
    assert [film.uid for film in films] == [f"images/{path.name}" for path in paths]
    assert [read_location(film.path, 10 * MEGABYTE) for film in films] == [path.read_bytes() for path in paths]


def test_a_table_in_the_object_store_names_films_in_it(store: ObjectStore) -> None:
    put(store, "set/images/1.png", "other/images/2.png")
    rows = "file,patient\nimages/1.png,a\ns3://films/set/x/../images/2.png,b\n"
    put(store, "set/labels.csv", content=rows.encode())
    films = list(read_folder(["s3://films/set"], "s3://films/set/labels.csv"))
    assert [film.path for film in films] == ["s3://films/set/images/1.png", "s3://films/set/images/2.png"]
    films = list(read_folder(["s3://films/set", "s3://films/other"], "s3://films/set/labels.csv"))
    assert [film.path for film in films] == ["s3://films/set/images/1.png", "s3://films/set/images/2.png"]
    assert [film.patient for film in films] == ["a", "b"]
    for path in ("../other/images/2.png", "s3://films/other/2.png", "/images/1.png", "s3://films/settee/1.png"):
        put(store, "set/bad.csv", content=f"file\n{path}\n".encode())
        with pytest.raises(UsageError, match="row 1 of column 'file' leads out of s3://films/set$"):
            read_folder(["s3://films/set"], "s3://films/set/bad.csv")
    with pytest.raises(UsageError, match="the table s3://films/absent.csv does not exist"):
        read_folder(["s3://films/set"], "s3://films/absent.csv")


def test_a_film_of_a_table_is_looked_for_in_each_prefix(store: ObjectStore, tmp_path: Path) -> None:
    put(store, "one/1.png", "two/2.png")
    (tmp_path / "t.csv").write_text("file\n1.png\n2.png\n3.png\n")
    films = read_folder(["s3://films/one", "s3://films/two/"], tmp_path / "t.csv")
    expected = ["s3://films/one/1.png", "s3://films/two/2.png", "s3://films/one/3.png"]
    assert [film.path for film in films] == expected
