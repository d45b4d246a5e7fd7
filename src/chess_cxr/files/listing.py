"""List the files below a folder or URL; follow links only within the tree."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow.fs

from chess_cxr.files.locations import get_filesystem, is_url, simplify_location, translate_error

_Lister = Callable[[str], tuple[list[str], list[str]]]


def find_kind(location: Path | str) -> str:
    """Return "file", "folder" or "" (nothing there); raises as `read_location`."""
    location = simplify_location(location)
    if isinstance(location, Path):
        try:
            return "folder" if location.is_dir() else "file" if location.exists() else ""
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                return ""
            raise
    filesystem, path = get_filesystem(location)
    try:
        kind = filesystem.get_file_info(path).type
    except OSError as error:
        raise translate_error(error) from None
    return {pyarrow.fs.FileType.NotFound: "", pyarrow.fs.FileType.Directory: "folder"}.get(kind, "file")


def list_location(
    root: Path | str, keep: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[Path | str, str]]:
    """Yield each file below a folder or prefix, with its relative path ("a/b.dcm"), in a fixed order.

    The files of a folder come first, by name, then its folders by name.  keep: selects files by name.
    Left out are hidden files and folders, pipes, devices, stores (folders named `.lance` that hold a Lance table), and
    links to folders, to nothing or out of the tree.  Memory holds the names of one folder at a time.

    Raises `NotADirectoryError`, and `OSError` for a folder that cannot be listed.
    """
    root = simplify_location(root)
    list_folder = _build_local_lister(root) if isinstance(root, Path) else _build_remote_lister(root)
    waiting = [""]
    while waiting:
        below = waiting.pop()
        files, folders = list_folder(below)
        for name in sorted(filter(keep, files)):
            yield _locate(root, below + name), below + name
        inner = [f"{below}{name}/" for name in sorted(folders, reverse=True)]
        waiting += [folder for folder in inner if not _is_store(root, folder)]


def _locate(root: Path | str, relative: str) -> Path | str:
    return root / relative if isinstance(root, Path) else f"{root}/{relative}"


def _is_store(root: Path | str, folder: str) -> bool:
    """Whether a folder is a Lance table; an ingest may write its store among its own films."""
    return folder.endswith(".lance/") and find_kind(_locate(root, f"{folder}_versions")) == "folder"


def _build_local_lister(root: Path) -> _Lister:
    """Return a function that lists the files and the folders in a folder below `root`, unsorted."""
    inside = os.path.join(os.path.realpath(root), "")

    def list_folder(below: str) -> tuple[list[str], list[str]]:
        files, folders = [], []
        folder = os.path.join(root, below)
        with _scan_folder(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_symlink() and _leads_to_file(os.path.join(folder, entry.name), inside):
                    files.append(entry.name)
        return files, folders

    return list_folder


@contextlib.contextmanager
def _scan_folder(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Scan a folder; enter it step by step if its path is too long for the system."""
    try:
        scanned = os.scandir(folder)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        with _open_step_by_step(folder) as descriptor, os.scandir(descriptor) as entries:
            yield entries
        return
    with scanned as entries:
        yield entries


@contextlib.contextmanager
def _open_step_by_step(folder: str) -> Iterator[int]:
    descriptor = os.open(os.sep if os.path.isabs(folder) else os.curdir, os.O_RDONLY)
    try:
        for name in filter(None, folder.split(os.sep)):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _leads_to_file(link: str, inside: str) -> bool:
    """Whether a link ends at a file in the tree `inside`; False for a circle and for a path that is too long."""
    if not os.path.realpath(link).startswith(inside):
        return False
    try:
        return stat.S_ISREG(os.stat(link).st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def build_link_check(root: Path | str) -> Callable[[Path | str], bool]:
    """Return a function that tells whether a path below `root` leads out of it through a link.

    Root and paths are absolute and without "..".  URLs and missing files never lead out.
    A check costs one system call; links of folders are resolved once.
    """
    if is_url(root):
        return lambda path: False
    inside = os.path.join(os.path.realpath(root), "")

    @lru_cache(maxsize=256)
    def is_inside(folder: str) -> bool:
        return os.path.join(os.path.realpath(folder), "").startswith(inside)

    def leads_out(path: Path | str) -> bool:
        text = str(path)
        try:
            if not is_inside(os.path.dirname(text)):
                return True
            return os.path.islink(text) and not os.path.realpath(text).startswith(inside)
        except ValueError:  # a NUL in it: no file can have such a name
            return False

    return leads_out


def _build_remote_lister(root: str) -> _Lister:
    filesystem, start = get_filesystem(root)

    def list_folder(below: str) -> tuple[list[str], list[str]]:
        files, folders = list[str](), list[str]()
        selector = pyarrow.fs.FileSelector(f"{start}/{below}".rstrip("/"))
        try:
            entries = filesystem.get_file_info(selector)
        except OSError as error:
            raise translate_error(error) from None
        for entry in entries:
            if not entry.base_name.startswith("."):
                (folders if entry.type == pyarrow.fs.FileType.Directory else files).append(entry.base_name)
        return files, folders

    return list_folder
