"""`weights/EXP/`: one run's checkpoints, safe from a second run, a full disk and a kill at any moment."""

import fcntl
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from utils.errors import InputError
from utils.file_system import lock_file
from utils.safe_io import TEMPORARY_PREFIX

T = TypeVar("T")


class OtherRun(InputError):
    """A whole state that is not of this run, or of it with other flags: an older one must not take its place."""


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make `path` and its parents; of those made here, the ones that are empty at the end go again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


class RunFolder:
    """The folder of one run, locked against a second process until this one ends.

    `last.pth` is the whole state, `last.prev.pth` the one before it; `best.pth` and DATASET_STEP.pth hold weights only.
    A context manager: at its end the lock is removed, and the folder too if it is still empty and was made here.
    Raises InputError if another process trains into it.
    """

    def __init__(self, path: Path, dataset: str, lock: bool):
        self.path, self.dataset = path, dataset
        self._main, self._stack = lock, ExitStack()
        if not lock:  # of many ranks only the one that writes
            return
        self._stack.enter_context(made_folder(path))
        handle = self._stack.enter_context((path / ".lock").open("a"))  # never empties what a link points to
        try:
            lock_file(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(handle.fileno()).st_nlink:  # removed by a run that ended just now
                raise BlockingIOError
        except BlockingIOError:
            raise InputError(f"{path}: another run is training into it: choose another --exp_name") from None
        self._stack.callback((path / ".lock").unlink, missing_ok=True)
        for half in path.glob(f"{TEMPORARY_PREFIX}*"):  # of a run that was killed while it saved
            half.unlink(missing_ok=True)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    @property
    def _states(self) -> list[Path]:
        """Files of whole states, newest first; last.new.pth exists only between the two renames of `save_last`."""
        return [self.path / name for name in ("last.new.pth", "last.pth", "last.prev.pth")]

    def begin(self, resume: bool) -> bool:
        """Whether there is a state to go on from. Raises InputError if a run would be overwritten."""
        if self._found() and not resume:
            raise InputError(f"{self.path} already holds a run: continue it with --resume or choose another --exp_name")
        if not self._found() and list(self.path.glob("*.pth")):
            raise InputError(f"{self.path} holds checkpoints but no last.pth to --resume: choose another --exp_name")
        return bool(self._found())

    def newest(self, read: Callable[[Path], T]) -> T:
        """What `read` gives for the newest whole state.

        Raises its InputError for the newest if none is whole, and at once where it is an OtherRun.
        """
        reasons = []
        for file in self._found():
            try:
                state = read(file)
            except OtherRun:
                raise
            except InputError as error:
                reasons.append(str(error))
                continue
            for reason in reasons if self._main else ():
                print(f"{reason}; falling back to {file}", file=sys.stderr)
            return state
        raise InputError(reasons[0])

    def _found(self) -> list[Path]:
        return [file for file in self._states if file.exists()]

    def save_last(self, write: Callable[[Path], None]) -> None:
        """Let `write` write the whole state; the one before it is kept."""
        new, last, previous = self._states
        write(new)
        if last.exists():
            last.replace(previous)
        new.replace(last)

    def numbered(self, step: int) -> Path:
        """The name of the checkpoint of a step, as in the reference."""
        return self.path / f"{self.dataset}_{step}.pth"

    @property
    def best(self) -> Path:
        """The name of the checkpoint with the best validation oIoU."""
        return self.path / "best.pth"

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` numbered checkpoints; 0 keeps all."""
        pattern = re.compile(re.escape(self.dataset) + r"_(\d+)\.pth")
        found = sorted((int(match[1]), file) for file in self.path.iterdir() if (match := pattern.fullmatch(file.name)))
        for _, file in found[: len(found) - keep] if keep else []:
            file.unlink()
