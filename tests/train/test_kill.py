"""kill -9 at random moments of a training and of a build: what goes on afterwards ends with the same bits."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.support.builder import SIZE, batches, tree
from tests.support.forked import errors, script, start
from tests.support.tiny_set import make_tiny_set
from tests.support.train_runs import equal, outcome, train
from tests.support.train_runs import start as start_training

pytestmark = pytest.mark.kill

KILLS = 20
LONG = ("--num_steps", "10", "--save_every", "2", "--log_every", "1")


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


PHASES = {  # what shows that a run is there, beyond what was there before it began
    "start": lambda folder, before: True,
    "steps": lambda folder, before: stamp(folder / "log.jsonl") > before,
    "saving": lambda folder, before: any(folder.glob(".writing-*")),
    "validation": lambda folder, before: stamp(folder / "last.pth") > before,
}


def test_twenty_kills_of_a_training(batches, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert train(batches, whole, *LONG)[0] == 0
    expected, moment = outcome(whole), random.Random(7)
    kills = dict.fromkeys(PHASES, 0)
    while sum(kills.values()) < KILLS:
        phase = min(kills, key=kills.get)
        before = max(stamp(folder / "log.jsonl"), stamp(folder / "last.pth"))
        process = start_training(batches, folder, *LONG, "--resume")
        while process.exitcode is None and not PHASES[phase](folder, before):
            time.sleep(0.0005)
        process.join(moment.uniform(0, 0.5 if phase == "start" else 0.01))
        process.kill()
        process.join()
        if process.exitcode == -9:
            kills[phase] += 1
            continue
        assert (process.exitcode, errors(folder)) == (0, "")
        assert equal(outcome(folder), expected)
        shutil.rmtree(folder)
    assert train(batches, folder, *LONG, "--resume")[0] == 0
    assert equal(outcome(folder), expected)
    assert not list(folder.glob(".writing-*"))


def whole_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """The finished files of a split, and what changes if one is written again."""
    files = (path for path in folder.glob("train_*/[!.]*"))
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_twenty_kills_of_a_build(tmp_path):
    """At a random number of files, and then at once or within a file's time."""
    root = make_tiny_set(tmp_path / "killed", images=24, refs=2, sentences=6)
    undisturbed, folder, total = shutil.copytree(root, tmp_path / "undisturbed"), batches(root), 24 + 48 + 288
    moment, kept = random.Random(4), {}
    flags = ["-d", "Gref", "-t", "train", "--img-size", SIZE, "--workers", "1", "--root"]
    goals = [0, 0, *sorted(moment.sample(range(total * 2 // 3), KILLS - 2))]  # so that no run ends unkilled
    for goal in goals:
        process = start(script, "build_batches", [*flags, root], output=tmp_path / "run")
        while process.exitcode is None and len(whole_files(folder)) < goal:
            time.sleep(0.0005)
        process.join(moment.uniform(0, 0.05 if goal == 0 else 0.002))
        process.kill()
        process.join()
        assert process.exitcode == -9, errors(tmp_path / "run")
        found = whole_files(folder)
        assert kept.items() <= found.items()  # nothing was made again
        assert not found or not json.loads((folder / "meta.json").read_text())["splits"]["train"]["complete"]
        kept = found
    for place in (root, undisturbed):
        process = start(script, "build_batches", [*flags, place], output=tmp_path / "run")
        process.join(60)
        assert (process.exitcode, errors(tmp_path / "run")) == (0, "")
    assert tree(folder) == tree(batches(undisturbed))
    assert kept and kept.items() <= whole_files(folder).items()
