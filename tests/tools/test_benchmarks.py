"""The benchmark scripts at toy size: they run, and their two ways agree. What they time is not looked at."""

import copy
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import bench_build, bench_load, bench_startup, gpu, gpu_rows
from benchmarks.photos import make_set
from benchmarks.report import table
from prepare.public import read_refs
from prepare.writer import BuildOptions, build
from utils.errors import InputError
from utils.prepared import PreparedSplit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("photos"), images=2)


def test_every_gpu_row_runs():
    args = Namespace(device="cpu", tiny=True, batches="2", images=2, repeats=1, minutes=5)
    found = []
    gpu.measure(args, lambda values: found.append(copy.deepcopy(values)))
    assert [len(values["training"]) for values in found] == list(range(2 + len(gpu_rows.OURS)))
    values = found[-1]
    assert [row["way"] for row in values["training"]] == [gpu_rows.REFERENCE.name, *gpu.NAMES]
    assert all(row["samples_per_s"] > 0 for row in values["training"])
    assert values["evaluation"][1]["logits_differ"] < 1e-5
    assert values["evaluation"][1]["pixels_differ"] == 0 < values["evaluation"][2]["pixels_differ"] < 0.1
    assert 10 < values["oiou"]["fp32"] < 99.9 and 0 < abs(values["oiou"]["fp32"] - values["oiou"]["bf16"]) < 2
    text = gpu.markdown(values)
    assert "these figures mean nothing" in text
    assert text.count("| ours, bf16, --compile |") == 1


def test_gpu_rows_for_which_there_is_no_time_say_so():
    bench = gpu_rows.Bench(gpu_rows.torch.device("cpu"), True, 1, seconds=-1)
    rows = list(gpu_rows.training_rows(bench, [8], 1.0, 1.0))
    text = gpu.markdown(
        {
            "where": "here",
            "tiny": False,
            "matmul_tflops": 1.0,
            "flops_a_sample": 1.0,
            "evaluation": [],
            "oiou": {"fp32": 0.0, "bf16": 0.0},
            "training": rows,
            "gb_a_sample": {},
        }
    )
    assert text.count("not measured: time was up") == 1 + len(gpu_rows.OURS)


def test_one_training_step_is_the_same_either_way():
    bench = gpu_rows.Bench(gpu_rows.torch.device("cpu"), True, 1, seconds=60)
    ways = [replace(gpu_rows.REFERENCE, amp=None), gpu_rows.OURS[0]]
    for module in bench.model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    theirs, ours = (bench.trainer(way, 2)() for way in ways)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_reference_way_of_building_gives_our_arrays(photos, tmp_path):
    refs = read_refs(photos, "unc", "train")
    assert (len(refs), {len(ref.sentences) for ref in refs}) == (5, {3})
    bench_build.reference_seconds(photos, tmp_path / "theirs", 1)
    split = PreparedSplit(build(BuildOptions(photos, "unc", "train", (480, 480), workers=1)).folder, "train")
    bench_build.check_identical(tmp_path / "theirs", split)
    assert bench_build.size_of(tmp_path / "theirs") > 10 * bench_build.size_of(split.folder)
    stored = dict(np.load(tmp_path / "theirs/unc_train_7.npz"))
    stored["mask_batch"][0, 0] ^= True
    np.savez(tmp_path / "theirs/unc_train_7.npz", **stored)
    with pytest.raises(InputError, match="expression 7"):
        bench_build.check_identical(tmp_path / "theirs", split)


def test_the_reference_way_of_loading_gives_our_samples(photos, tmp_path):
    options = BuildOptions(photos, "unc", "train", (48, 48), workers=1, self_contained=True)
    folder = build(options).folder
    split = PreparedSplit(folder, "train")
    image, mask, ids = bench_load.reference_sample(folder, 3)
    ours = bench_load.TrainDataset(split)[3]
    assert ((image * 0.5 + 0.5) * 255 - ours["image"]).abs().max() < 1e-3
    assert (mask == ours["mask"]).all() and (ids == ours["ids"]).all()
    assert bench_load.throughput(split, 0, 1, samples=24) > 0
    assert bench_load.milliseconds({"a": split.image}, len(split), 1)["a"] > 0


def test_a_large_split_starts(tmp_path, capsys):
    folder = bench_startup.make_split(tmp_path, 300)
    assert len(PreparedSplit(folder, "train")) == 300
    for way in bench_startup.WAYS:
        bench_startup.run_way(way, folder)
        assert len(capsys.readouterr().out.split()) == 3


def test_tables():
    assert table(("a", "b"), [(1, 0.01234), ("x", 1234.5)]).splitlines()[2:] == ["| 1 | 0.0123 |", "| x | 1234 |"]
