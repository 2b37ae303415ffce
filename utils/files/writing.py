"""Writing files whole or not at all."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from utils.files.reading import MAX_NAME_BYTES

TEMPORARY_PREFIX = ".writing-"  # a killed process leaves such files behind; they can be removed
MAX_WORDS_BYTES = 60
SUFFIX_BYTES = 100  # of "-WORDS_K_overlay.png" and what a file system needs beside it


@contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """Its file descriptor."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def lock_file(file: IO, operation: int) -> None:
    """fcntl.flock; where the file system has no locks, a warning once. Raises BlockingIOError with LOCK_NB."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _warn_of_no_locks()


@cache
def _warn_of_no_locks() -> None:
    fault = "its file system has no locks, so that two runs into one folder are not kept apart: start only one"
    print(f"warning: {fault}", file=sys.stderr)


@contextmanager
def atomic_write(path: str | os.PathLike, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` only when the block ends without an exception.

    The temporary stands in the same folder under a hidden name of its own and is removed on failure. `durable`: the
    disk has the content before the name appears, and the name at the end. Raises OSError, which names `path`.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)  # the name that the user knows
        raise
    if durable:
        _flush_names(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")


def _flush_names(path: Path) -> None:
    for folder in path.absolute().parents:  # new ones among them are durable when the folder above them is
        with suppress(OSError), opened_folder(folder) as handle:  # not every file system can
            os.fsync(handle)


def link_or_copy(source: Path, path: Path) -> None:
    """Make `path` a second name of the file `source`, whole or not at all; a copy where there are no hard links.

    What replaces or deletes one of the names, as `atomic_write` does, leaves the other as it is. Raises OSError.
    """
    temporary = _temporary(path)
    try:
        os.link(source, temporary)
    except OSError:  # FAT, some network disks
        with source.open("rb") as file, atomic_write(path) as copy:
            shutil.copyfileobj(file, copy)
        return
    temporary.replace(path)
    temporary.unlink(missing_ok=True)  # a rename to another name of the same file does nothing
    _flush_names(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically and durably. NaN and infinity are not JSON: ValueError."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make `path` and its parents; after an exception, of those made here the ones that are empty go again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()
        raise


def plain_words(text: str) -> str:
    """The letters and digits of an expression, in lower case, joined by "_", for the names of its results."""
    kept = "_".join(re.findall(r"[^\W_]+", text.lower()))
    return kept.encode()[:MAX_WORDS_BYTES].decode(errors="ignore").strip("_") or "expression"


def plain_name(path: Path) -> str:
    """The image's name without its suffix, as results can carry it: what files or terminals do not take becomes "_"."""
    kept = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in path.stem)
    return kept.encode()[: MAX_NAME_BYTES - SUFFIX_BYTES].decode(errors="ignore").lstrip(".~-").strip() or "image"
