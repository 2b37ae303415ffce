"""Locks, and waiting for the disk."""

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """Its file descriptor."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def sync_file_system(folder: Path) -> None:
    """Wait until the disk has all that was written to the file system of `folder`. Raises OSError."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # not Linux
        os.sync()
        return
    with opened_folder(folder) as handle:
        if syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))


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
