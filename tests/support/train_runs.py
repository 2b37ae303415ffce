"""Running train_restr.py in tests, and comparing what runs leave behind."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from tests.conftest import batches as batches_fixture  # noqa: F401 (a fixture)
from tests.support import forked
from tests.support.forked import errors

FLAGS = """
    --v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --no_pretrained --input_size 48,48 --adamW --lr 1e-3
    --v_lr_scale 1 --batch_size 4 --num_steps 12 --save_every 4 --log_every 2 --num_workers 0 --device cpu
""".split()


def start(batches: Path, folder: Path, *flags: str, base: Sequence[str] = FLAGS, **limits):
    """Start a run into `folder`; its output goes to FOLDER.out and .err. `limits`: see `forked.script`."""
    where = ["--data_dir", str(batches), "--weights_dir", str(folder.parent), "--exp_name", folder.name]
    arguments = [*where, *base, *flags]
    return forked.start(partial(forked.script, **limits), "train_restr", arguments, output=folder)


def train(batches: Path, folder: Path, *flags: str, **how) -> tuple[int, str]:
    """A whole run: its exit code and what it wrote to standard error, without the progress bar."""
    process = start(batches, folder, *flags, **how)
    process.join(120)
    assert not process.is_alive(), "it hangs"
    return process.exitcode, errors(folder)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when `condition` holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def outcome(folder: Path) -> dict:
    """What two equal runs have in common: the log, and every checkpoint's content but for the names of files."""
    files = sorted(folder.glob("*.pth"))
    contents = {file.name: torch.load(file, weights_only=True) for file in files if file.name != "last.prev.pth"}
    return {"log": (folder / "log.jsonl").read_bytes(), **contents}


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
