"""List the files below a folder or URL, links followed within bounds."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow.fs

from chess_cxr.files.locations import _translate, get_filesystem, is_url, simplify_location


def find_kind(location: Path | str) -> str:
    """Return "file", "folder", or "" where nothing is; errors as `read_location`."""
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
        raise _translate(error) from None
    return {pyarrow.fs.FileType.NotFound: "", pyarrow.fs.FileType.Directory: "folder"}.get(kind, "file")


def list_location(
    root: Path | str, keep: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[Path | str, str]]:
    """Yield each file below a folder or prefix, with its path from there ("a/b.dcm"), in an order that never changes.

    The files of a folder come by name, then its folders by name; `keep` judges files by their names.  Hidden
    files and folders are left out, and so are pipes, devices, stores (folders named `.lance` with a Lance table in
    them) and links that lead out of the tree, to a folder or to nothing.
    The names of one folder at a time are held in memory, so a tree of any size needs little.

    Raises `NotADirectoryError`, and `OSError` for a folder that cannot be listed, rather than pass it over.
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
    """Whether a folder is a Lance table: an ingest may write its store among its own films."""
    return folder.endswith(".lance/") and find_kind(_locate(root, f"{folder}_versions")) == "folder"


_Lister = Callable[[str], tuple[list[str], list[str]]]


def _build_local_lister(root: Path) -> _Lister:
    """Return what lists the names of the files and the folders in a folder below `root`, unsorted."""
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
    """Scan a folder; one whose path is longer than the system takes is entered step by step."""
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
    """Whether a link ends at a file in the tree `inside`; one that runs in a circle or has too long a path does not."""
    if not os.path.realpath(link).startswith(inside):
        return False
    try:
        return stat.S_ISREG(os.stat(link).st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def build_link_check(root: Path | str) -> Callable[[Path | str], bool]:
    """Return what tells whether a file named below `root` lies outside of it, by a link at its place or above it.

    Both are written alike: absolute, without "..".  Objects of a store are never links.
    Costs one call of the system a file; folders are followed once.  What is not there leads nowhere: False.
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
        files: list[str] = []
        folders: list[str] = []
        selector = pyarrow.fs.FileSelector(f"{start}/{below}".rstrip("/"))
        try:
            entries = filesystem.get_file_info(selector)
        except OSError as error:
            raise _translate(error) from None
        for entry in entries:
            if not entry.base_name.startswith("."):
                (folders if entry.type == pyarrow.fs.FileType.Directory else files).append(entry.base_name)
        return files, folders

    return list_folder
