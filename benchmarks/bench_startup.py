"""Start-up of training on a split of 120,000 expressions, and memory over an epoch.

    python benchmarks/bench_startup.py
    python benchmarks/bench_startup.py --expressions 1000000

The split is synthetic: 100 real samples at 480, and hard links to their npz under the other numbers, so that the folder
has as many entries as a real one. Each way runs in a process of its own that has imported train_restr.py: `first batch`
opens the split, makes the first epoch's permutation and loads 8 samples; `an epoch` draws all batches of an epoch and
loads every 100th of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.report import peak_mb, table, where
from utils.cli import ArgumentParser, run_main

READ_EVERY = 100
WAYS = ("first batch", "an epoch")


def make_split(root: Path, expressions: int) -> Path:
    """Prepared data whose split `train` has so many expressions."""
    from benchmarks.photos import make_set
    from prepare.writer import BuildOptions, build
    from utils.files.reading import read_json
    from utils.files.writing import write_json

    make_set(root, 14)
    folder = build(BuildOptions(root, "unc", "train", (480, 480), workers=1)).folder
    meta = read_json(folder / "meta.json", "meta", "")
    real = meta["splits"]["train"]["expressions"]
    for number in range(real, expressions):
        os.link(folder / f"train_batch/unc_train_{number % real}.npz", folder / f"train_batch/unc_train_{number}.npz")
    meta["splits"]["train"]["expressions"] = expressions
    write_json(folder / "meta.json", meta)
    return folder


def run_way(way: str, folder: Path) -> None:
    """Open and read `folder` in this process; print seconds, and MB before and at the peak."""
    import train_restr  # noqa: F401
    from train.data import StepSampler, TrainDataset, collate
    from utils.prepared import PreparedSplit

    before, started = peak_mb(), time.perf_counter()
    split = PreparedSplit(folder, "train")
    samples = TrainDataset(split)
    for step, indices in enumerate(StepSampler(len(split), 8, seed=1, start=0, stop=len(split) // 8)):
        if step % READ_EVERY == 0:
            collate([samples[i] for i in indices])["image"]
        if way == "first batch":
            break
    print(time.perf_counter() - started, before, peak_mb())


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--expressions", type=int, default=120_000, help="samples of the split; RefCOCO has 120,624")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; the median counts")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        run_way(args.way, args.folder)
        return
    print(f"{where()}\n{args.expressions:,} expressions\n")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_split(Path(scratch), args.expressions)
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", folder]
            runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(args.repeats)]
            values = [[float(word) for word in run.stdout.split()] for run in runs]
            seconds, before, after = (median(column) for column in zip(*values, strict=True))
            rows.append((way, seconds, before, after - before))
    head = ("until the end of", "s after the imports", "MB after the imports", "MB more at the peak")
    print(table(head, rows))


if __name__ == "__main__":
    run_main(main)
