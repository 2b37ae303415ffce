"""Loading training samples at 480: time of a sample, what a loader delivers, start-up on 120,000, and their memory.

    python benchmarks/bench_load.py
    python benchmarks/bench_load.py --images /path/to/photographs --workers 1,2,8,16

The authors' code reads a self-contained npz for each sample (uncompressed: image and mask again for every expression),
here from a folder that `--self_contained` writes, and turns it into tensors in a plain loop. Ours reads a small npz and
two PNGs. Files are in the page cache; a disk would add the time for the large npz.
For the start-up the split gets hard links to its npz under further numbers, so that its folder has as many entries as a
real one. Each way runs in a process of its own that has imported train_restr.py: `first batch` opens the split, makes
the first epoch's permutation and loads 8 samples; `an epoch` draws all batches of an epoch and loads every 100th.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.photos import make_set
from benchmarks.report import IMAGES, fresh_process, medians, peak_mb, seconds, table, where
from prepare.writer import BuildOptions, build
from train.data import TrainDataset, collate
from train.sampler import StepSampler
from utils.cli import ArgumentParser, run_main
from utils.files.reading import read_json
from utils.files.writing import write_json
from utils.prepared import PreparedSplit

NEEDED, CORES = 600, 16  # samples a second on so many cores
READ_EVERY = 100
WAYS = ("first batch", "an epoch")


def reference_sample(folder: Path, i: int) -> tuple:
    """Sample i as the authors' data set makes it: float image 3 x H x W in 0..1, mask, ids."""
    with np.load(folder / f"train_batch/unc_train_{i}.npz") as stored:
        image, mask, ids = stored["im_batch"], stored["mask_batch"], stored["text_batch"]
    image = torch.from_numpy(image.transpose(2, 0, 1)).contiguous().float().div(255)
    return image.sub(0.5).div(0.5), torch.from_numpy(mask)[None].float(), torch.from_numpy(ids)


def milliseconds(reads: dict[str, Callable[[int], object]], count: int, repeats: int) -> dict[str, float]:
    """Median ms of processor time a sample of each reader, which read in an order that is not the disk's.

    Processor time, as nothing here waits, is nearly the same where other programs share the machine.
    """
    order = np.random.default_rng(0).permutation(count).tolist()

    def read_all(read: Callable[[int], object]) -> None:
        for i in order:
            read(i)

    found = seconds({name: partial(read_all, read) for name, read in reads.items()}, repeats, clock=time.process_time)
    return {name: 1e3 * value / count for name, value in found.items()}


def throughput(split: PreparedSplit, workers: int, samples: int = 800) -> float:
    """Samples a second that a loader delivers in batches of 8 once its workers run."""
    order = [int(i) % len(split) for i in np.random.default_rng(1).permutation(max(samples, len(split)))]
    options = {"batch_size": 8, "sampler": order, "num_workers": workers, "drop_last": True}
    batches = iter(DataLoader(TrainDataset(split), collate_fn=collate, **options))
    for _ in range(2 * max(1, workers)):
        next(batches)
    started, done = time.perf_counter(), sum(len(batch["ids"]) for batch in batches)
    return done / (time.perf_counter() - started)


def extend(folder: Path, expressions: int) -> None:
    """Prepared data whose split `train` has so many expressions from now on."""
    meta = read_json(folder / "meta.json", "meta", "")
    real = meta["splits"]["train"]["expressions"]
    for number in range(real, expressions):
        os.link(folder / f"train_batch/unc_train_{number % real}.npz", folder / f"train_batch/unc_train_{number}.npz")
    meta["splits"]["train"]["expressions"] = expressions
    write_json(folder / "meta.json", meta)


def start_up(way: str, folder: Path) -> None:
    """Open and read `folder` in this process; print seconds, and MB before and more at the peak."""
    import train_restr  # noqa: F401

    before, started = peak_mb(), time.perf_counter()
    split = PreparedSplit(folder, "train")
    samples = TrainDataset(split)
    for step, indices in enumerate(StepSampler(len(split), 8, seed=1, start=0, stop=len(split) // 8)):
        if step % READ_EVERY == 0:
            collate([samples[i] for i in indices])["image"]
        if way == "first batch":
            break
    print(time.perf_counter() - started, before, peak_mb() - before)


def measure(args, scratch: Path) -> None:
    """Print each table when it is measured."""
    root = make_set(scratch / "set", args.count, args.images)
    options = BuildOptions(root, "unc", "train", (480, 480), workers=os.cpu_count() or 1)
    large = build(replace(options, self_contained=True)).folder.rename(scratch / "large")
    folder = build(options).folder
    split = PreparedSplit(folder, "train")
    reads = {"authors' way": partial(reference_sample, large), "ours": TrainDataset(split).__getitem__}
    times = milliseconds(reads, len(split), args.repeats)
    rows = [(name, value, 1e3 / value) for name, value in times.items()]
    print(table(("one process", "ms a sample", "samples/s a core"), rows))
    print(
        f"\nAsked: {NEEDED} samples/s on {CORES} cores. The rate of a core times {CORES}: {CORES * rows[1][2]:.0f}.\n"
    )
    loaders = {int(n): lambda n=int(n): (throughput(split, n),) for n in args.workers.split(",")}
    rows = [(n, rate, rate / max(1, n)) for n, (rate,) in medians(loaders, args.repeats).items()]
    print(table(("loader processes", "samples/s", "samples/s a process"), rows))
    extend(folder, args.expressions)
    command = partial(fresh_process, __file__, "--folder", folder, "--start_up")
    starts = medians({way: lambda way=way: map(float, command(way)[2]) for way in WAYS}, args.repeats)
    print(f"\nStart-up, {args.expressions:,} expressions:\n")
    head = ("until the end of", "s after the imports", "MB after the imports", "MB more at the peak")
    print(table(head, [(way, *values) for way, values in starts.items()]))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help=IMAGES)
    parser.add_argument("--count", type=int, default=40, help="images of the split, with 7.5 samples each")
    parser.add_argument("--workers", default=f"1,{os.cpu_count()}", help="loader processes to try, with commas")
    parser.add_argument("--expressions", type=int, default=120_000, help="samples at start-up; RefCOCO has 120,624")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; the median counts")
    parser.add_argument("--start_up", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start_up:
        start_up(args.start_up, args.folder)
        return
    torch.set_num_threads(1)
    print(f"{where()}\n{'photographs' if args.images else 'synthetic images'}, files in the page cache\n")
    with tempfile.TemporaryDirectory() as scratch:
        measure(args, Path(scratch))


if __name__ == "__main__":
    run_main(main)
