"""The benchmark scripts at toy size: they run, and their two ways agree. What they time is not looked at."""

import copy
import runpy
import sys

import numpy as np
import pytest
import torch

from benchmarks import bench_data, bench_model, ways
from benchmarks.photos import make_set
from benchmarks.report import medians, table
from prepare.public import read_refs
from prepare.writer import BuildOptions, build
from tests.conftest import ROOT
from utils.errors import InputError
from utils.prepared import PreparedSplit

BENCH = ways.Bench(torch.device("cpu"), tiny=True)


def test_one_training_step_is_the_same_either_way():
    network = BENCH.network

    def without_drops(way):
        model = network(way)
        for module in [] if way.reference else model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        return model

    bench = copy.copy(BENCH)
    bench.network = without_drops
    theirs, ours = (bench.step(way, 2) for way in (ways.AUTHORS, ways.OURS))
    losses = [(theirs(), ours()) for _ in range(2)]
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == pytest.approx(losses[0][0], rel=1e-5)


@pytest.mark.slow
def test_every_row_of_the_model(monkeypatch, capsys):
    arguments = ["--tiny", "--batch", "1", "--images", "1", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_model.py", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "benchmarks/bench_model.py"), run_name="__main__")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    assert left.value.code == 0 and len(rows) == 13
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows if "largest difference" not in row[0])


def test_the_second_gpu_is_the_one_that_is_measured(monkeypatch):
    """Speed and memory are asked of the current device."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(bench_model, "print_step", lambda bench, *_: chosen.append(bench.device))
    monkeypatch.setattr(sys, "argv", ["bench_model.py", "--tiny", "--step_of", "ours", "--device", "cuda:1"])
    bench_model.main()
    assert chosen == [torch.device("cuda", 1)] * 2


def test_the_authors_data_are_ours(tmp_path, capsys):
    photos = make_set(tmp_path / "set", images=2)
    refs = read_refs(photos, "unc", "train")
    assert (len(refs), {len(ref.sentences) for ref in refs}) == (5, {3})
    theirs = tmp_path / "theirs"
    bench_data.reference_seconds(photos, theirs, 1)
    split = PreparedSplit(build(BuildOptions(photos, "unc", "train", (480, 480), workers=1)).folder, "train")
    bench_data.check_identical(theirs, split)
    assert bench_data.size_of(theirs) > 10 * bench_data.size_of(split.folder)

    image, mask, ids = bench_data.reference_sample(theirs, 3)
    ours = bench_data.TrainDataset(split)[3]
    assert ((image * 0.5 + 0.5) * 255 - ours["image"]).abs().max() < 1e-3
    assert (mask == ours["mask"]).all() and (ids == ours["ids"]).all()
    assert bench_data.throughput(split, 0, samples=24) > 0
    assert bench_data.milliseconds({"a": split.image}, len(split), 1)["a"] > 0

    bench_data.extend(split.folder, 300)
    assert len(PreparedSplit(split.folder, "train")) == 300
    for way in bench_data.WAYS:
        bench_data.start_up(way, split.folder)
        assert len(capsys.readouterr().out.split()) == 3

    stored = dict(np.load(theirs / "unc_train_7.npz"))
    stored["mask_batch"][0, 0] ^= True
    np.savez(theirs / "unc_train_7.npz", **stored)
    with pytest.raises(InputError, match="expression 7"):
        bench_data.check_identical(theirs, split)


def test_tables():
    shown = table(("a", "b"), [(1, 0.01234), ("x", 1234.5), (None, 2.0)]).splitlines()[2:]
    assert shown == ["| 1 | 0.0123 |", "| x | 1234 |", "| not measured | 2 |"]


def test_ways_take_turns():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or (len(calls), -len(calls)) for name in "ab"}
    assert medians(ways, 3, warm=1) == {"a": [5, -5], "b": [6, -6]}
    assert "".join(calls) == "abababab"
