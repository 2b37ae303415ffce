"""Loading training samples at 480: milliseconds a sample and core, and what a loader with workers delivers.

    python benchmarks/bench_load.py
    python benchmarks/bench_load.py --images /path/to/photographs --workers 1,2,8,16

The reference reads a self-contained npz a sample (uncompressed: image and mask again for every expression), here from a
folder that `--self_contained` writes; its own loop turns them into tensors. Ours reads a small npz and two PNGs. Files
are in the page cache; a disk would add the time for the large npz.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.photos import make_set
from benchmarks.report import table, where
from prepare.writer import BuildOptions, build
from train.data import TrainDataset, collate
from utils.cli import ArgumentParser, run_main
from utils.prepared import PreparedSplit

NEEDED = 600  # samples a second on 16 cores
CORES = 16


def reference_sample(folder: Path, i: int) -> tuple:
    """Sample i as the reference's data set makes it: float image 3 x H x W in 0..1, mask, ids."""
    with np.load(folder / f"train_batch/unc_train_{i}.npz") as stored:
        image, mask, ids = stored["im_batch"], stored["mask_batch"], stored["text_batch"]
    image = torch.from_numpy(image.transpose(2, 0, 1)).contiguous().float().div(255)
    return image.sub(0.5).div(0.5), torch.from_numpy(mask)[None].float(), torch.from_numpy(ids)


def milliseconds(reads: dict, count: int, repeats: int) -> dict[str, float]:
    """Median ms of processor time a sample of each reader; they take turns, in an order that is not the disk's.

    Processor time, as nothing here waits, is nearly the same where other programs share the machine.
    """
    order = np.random.default_rng(0).permutation(count)
    times = {name: [] for name in reads}
    for _ in range(repeats + 1):
        for name, read in reads.items():
            started = time.process_time()
            for i in order:
                read(int(i))
            times[name].append(1e3 * (time.process_time() - started) / count)
    return {name: median(values[1:]) for name, values in times.items()}


def throughput(split: PreparedSplit, workers: int, repeats: int, samples: int = 800) -> float:
    """Samples a second that a loader delivers in batches of 8 once its workers run."""
    rates = []
    for _ in range(repeats):
        order = [int(i) % len(split) for i in np.random.default_rng(1).permutation(max(samples, len(split)))]
        loader = DataLoader(
            TrainDataset(split), batch_size=8, sampler=order, num_workers=workers, collate_fn=collate, drop_last=True
        )
        batches = iter(loader)
        for _ in range(2 * max(1, workers)):
            next(batches)
        started, done = time.perf_counter(), sum(len(batch["ids"]) for batch in batches)
        rates.append(done / (time.perf_counter() - started))
    return median(rates)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of photographs (default: synthetic ones)")
    parser.add_argument("--count", type=int, default=40, help="images of the split, of 7.5 samples each")
    parser.add_argument(
        "--workers", type=numbers, default=f"1,{os.cpu_count()}", help="loader processes to try, with commas"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; the median counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{where()}\n{'photographs' if args.images else 'synthetic images'}, files in the page cache\n")
    with tempfile.TemporaryDirectory() as scratch:
        root = make_set(Path(scratch) / "set", args.count, args.images)
        options = BuildOptions(root, "unc", "train", (480, 480), workers=os.cpu_count() or 1)
        split = PreparedSplit(build(options).folder, "train")
        large = make_set(Path(scratch) / "large", args.count, args.images)
        folder = build(replace(options, root=large, self_contained=True)).folder
        samples, whole = TrainDataset(split), TrainDataset(PreparedSplit(folder, "train"))
        reads = {
            "the reference's way (self-contained npz, plain loop)": lambda i: reference_sample(folder, i),
            "ours": samples.__getitem__,
            "ours, of self-contained npz": whole.__getitem__,
        }
        times = milliseconds(reads, len(split), args.repeats)
        rates = [(workers, throughput(split, workers, args.repeats)) for workers in args.workers]
    rows = [(name, value, 1e3 / value) for name, value in times.items()]
    print(table(("one process", "ms a sample", "samples/s a core"), rows) + "\n")
    print(table(("loader processes", "samples/s", "samples/s a process"), [(n, r, r / n) for n, r in rates]))
    print(f"\nAsked: {NEEDED} samples/s on {CORES} cores. The rate of a core times {CORES}: {CORES * rows[1][2]:.0f}.")


def numbers(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of processes")
    return values


if __name__ == "__main__":
    run_main(main)
