"""Running train_restr.py in tests, and comparing what runs leave behind."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from tests.support import forked
from tests.support.forked import errors

FLAGS = """
    --v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --no_pretrained --adamW --lr 1e-3 --v_lr_scale 1
    --batch_size 4 --num_steps 12 --save_every 4 --log_every 2 --num_workers 0 --device cpu
""".split()


def arguments(batches: Path, folder: Path, *flags: str, base: Sequence[str] = FLAGS) -> list[str]:
    """The command line of a run into `folder`."""
    where = ["--data_dir", str(batches), "--weights_dir", str(folder.parent), "--exp_name", folder.name]
    return [*where, *base, *flags]


def start(batches: Path, folder: Path, *flags: str, base: Sequence[str] = FLAGS, **limits):
    """Start a run into `folder`; its output goes to FOLDER.out and .err. `limits`: see `forked.script`."""
    given = arguments(batches, folder, *flags, base=base)
    return forked.start(partial(forked.script, **limits), "train_restr", given, output=folder)


def train(batches: Path, folder: Path, *flags: str, **how) -> tuple[int, str]:
    """A whole run: its exit code and what it wrote to standard error, without its log."""
    process = start(batches, folder, *flags, **how)
    process.join(120)
    assert not process.is_alive(), "it hangs"
    return process.exitcode, errors(folder)


def refused(batches: Path, folder: Path, *flags: str, **how) -> str:
    """The one line of a run that ends with exit code 2."""
    code, message = train(batches, folder, *flags, **how)
    assert code == 2, message
    assert message.count("\n") == 0, message
    return message


def interrupted(batches: Path, folder: Path, number: int, *flags: str, after: str = "log.jsonl", **how) -> int:
    """The exit code of a run that is sent a signal when its file `after` is not empty."""
    process = start(batches, folder, *flags, number=number, after=folder / after, **how)
    process.join(60)
    return process.exitcode


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when `condition` holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def state(folder: Path, name: str = "last.pth") -> dict:
    """What a checkpoint of a run holds."""
    return torch.load(folder / name, weights_only=True)


def outcome(folder: Path) -> dict:
    """What two equal runs have in common: the log, and every checkpoint's content but for the names of files."""
    files = {file.name for file in folder.glob("*.pth")} - {"last.prev.pth"}
    return {"log": (folder / "log.jsonl").read_bytes(), **{name: state(folder, name) for name in files}}


def equal(a, b) -> bool:
    """Whether two nested values are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def records(folder: Path) -> list[dict]:
    """The lines of log.jsonl."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
