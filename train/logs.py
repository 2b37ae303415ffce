"""What a run reports while it runs: log.jsonl, TensorBoard, and one line at a time on the terminal."""

import json
import os
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from utils.errors import InputError, naming


def pass_over_disk_errors(failure) -> None:
    """For `threading.excepthook`: TensorBoard's thread meets a full disk, too, but the main thread reports it."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


class RunLog:
    """`log.jsonl` (only what a repeated run repeats: no times) and TensorBoard scalars, in `folder`.

    A resumed run passes the number of bytes of log.jsonl that its checkpoint knows; what was logged after it is
    dropped, and will be logged again. TensorBoard drops its events after `step` by itself. `wandb`: the flags of the
    run, to show it at Weights & Biases, too; None: nothing is imported or sent.
    Raises InputError if the package is missing.
    """

    def __init__(self, folder: Path, step: int = 0, known_bytes: int = 0, wandb: dict | None = None):
        self.wandb = None
        if wandb is not None:  # it has to be started before TensorBoard's writer to mirror it
            if find_spec("wandb") is None:
                raise InputError("--wandb: the package is not installed: pip install wandb, or leave the flag out")
            name = folder.resolve().name  # the parts of a resumed run are one group
            how = {"project": "restr", "dir": folder, "sync_tensorboard": True}
            self.wandb = import_module("wandb").init(name=name, group=name, config=wandb, **how)
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only here

        path = folder / "log.jsonl"
        self.file = path.open("ab")
        if path.stat().st_size < known_bytes:
            print(f"{path}: lines of the steps before {step + 1} are missing from it", file=sys.stderr)
            known_bytes = path.read_bytes().rfind(b"\n") + 1  # a line that was cut off goes
        self.file.truncate(known_bytes)
        self.file.seek(0, os.SEEK_END)
        with naming(folder):
            self.board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def position(self) -> int:
        """Bytes of log.jsonl so far, on disk."""
        with naming(self.file.name):
            self.file.flush()
            os.fsync(self.file.fileno())
            return self.file.tell()

    def record(self, kind: str, step: int, values: dict) -> None:
        """One line {"kind", "step", ...values} of log.jsonl, and its numbers as TensorBoard scalars `kind/name`."""
        with naming(self.file.name):
            self.file.write(json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n")
            self.file.flush()
        self.scalars(kind, step, values)

    def scalars(self, kind: str, step: int, values: dict) -> None:
        """Numbers for TensorBoard alone, such as samples/s."""
        with naming(self.board.log_dir):
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, name: str, step: int, image) -> None:
        """An image for TensorBoard: uint8 H x W x 3."""
        with naming(self.board.log_dir):
            self.board.add_image(name, image, step, dataformats="HWC")

    def text(self, name: str, step: int, text: str) -> None:
        """Markdown for TensorBoard."""
        with naming(self.board.log_dir):
            self.board.add_text(name, text, step)

    def close(self) -> None:
        """Write everything out."""
        with naming(self.file.name):
            self.file.close()
        with naming(self.board.log_dir):
            self.board.close()
        if self.wandb:
            self.wandb.finish()


class NoLog:
    """The log of a rank that writes nothing."""

    def record(self, *values) -> None:
        """Nothing."""

    scalars = picture = close = record
