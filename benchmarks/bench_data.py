"""Prepared data, the authors' way and ours: how long they take to build and how large they are; then how they load.

    python benchmarks/bench_data.py
    python benchmarks/bench_data.py --images /path/to/photographs --count 200 --workers 16

Building, the authors' way: for each ref the image is decoded, image and mask are resized by scikit-image, and each
expression gets an npz with both, in one process, as theirs does, and, for fairness, in as many as ours. All arrays must
be bit-identical. Ours is timed as users run it, start of Python included.
Loading, the authors' way: the npz (uncompressed: image and mask again for every expression) are read and turned into
tensors in a plain loop. Ours reads a small npz and two PNGs. Files are in the page cache; a disk would add the time for
the large npz.
Start-up: the split gets hard links to its npz under further numbers, so that its folder has as many entries as a real
one. Each way runs in a process of its own that has imported train_restr.py: `first batch` opens the split, makes the
first epoch's permutation and loads 8 samples; `an epoch` draws all batches of an epoch and loads every 100th.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import skimage
import torch
from PIL import Image
from skimage.transform import resize
from torch.utils.data import DataLoader

from benchmarks.photos import SENTENCES, make_set
from benchmarks.report import fresh_process, medians, peak_mb, seconds, table, where
from prepare.public import read_refs
from train.data import StepSampler, TrainDataset, collate
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.files.reading import read_json
from utils.files.writing import write_json
from utils.prepared import PreparedSplit
from utils.text import Vocabulary

SIZE = 480
PREPARED = f"data/mscoco/unc_{SIZE}_batch"
ROOT = Path(__file__).resolve().parents[1]
WAYS = ("first batch", "an epoch")


def fit_and_pad(array: np.ndarray) -> np.ndarray:
    """Resized by scikit-image to fit a canvas of zeros, and centred on it: float, in the range that `resize` gives."""
    height, width = array.shape[:2]
    scale = min(SIZE / height, SIZE / width)
    small = resize(array, (int(np.round(height * scale)), int(np.round(width * scale))))
    canvas = np.zeros((SIZE, SIZE, *array.shape[2:]), np.float64)
    top, left = (SIZE - small.shape[0]) // 2, (SIZE - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def reference_ref(work: tuple) -> None:
    """One ref the authors' way; `work`: the ref, its first number, the vocabulary and the folder."""
    ref, first, vocabulary, folder = work
    image = np.asarray(Image.open(ref.image_path).convert("RGB"))
    image = skimage.img_as_ubyte(fit_and_pad(image))
    mask = fit_and_pad(ref.mask().astype(np.float32)) > 0
    for number, sentence in enumerate(ref.sentences, first):
        texts = {"text_batch": vocabulary.ids(sentence), "sent_batch": [sentence], "im_name_batch": ref.image_name}
        np.savez(folder / f"unc_train_{number}.npz", im_batch=image, mask_batch=mask, **texts)


def reference_seconds(root: Path, folder: Path, processes: int) -> float:
    """Build the split of `root` into a new `folder`; reading the annotations is part of the time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    started = time.perf_counter()
    refs, vocabulary = read_refs(root, "unc", "train"), Vocabulary.load(root / "data/vocabulary_Gref.txt")
    work = [(ref, SENTENCES * i, vocabulary, folder) for i, ref in enumerate(refs)]
    with ProcessPoolExecutor(processes) as pool:
        list((map if processes == 1 else pool.map)(reference_ref, work))
    return time.perf_counter() - started


def our_build(root: Path, workers: int) -> tuple[float, float]:
    """Build the split of `root` anew: seconds of the whole command, and the peak MB of its largest process."""
    shutil.rmtree(root / "data/mscoco", ignore_errors=True)
    command = ["-d", "unc", "-t", "train", "--root", root, "--workers", workers]
    return fresh_process(ROOT / "build_batches.py", *command)[:2]


def check_identical(theirs: Path, ours: PreparedSplit) -> None:
    """Raise InputError unless all arrays of all expressions are the same to the last bit."""
    for i in range(len(ours)):
        image, mask = ours.sample(i)
        with np.load(theirs / f"unc_train_{i}.npz") as stored:
            pairs = zip((image, mask, ours.text(i)[0]), ("im_batch", "mask_batch", "text_batch"), strict=True)
            if not all(np.array_equal(array, stored[key]) and array.dtype == stored[key].dtype for array, key in pairs):
                raise InputError(f"expression {i}: the two ways differ")


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(args, root: Path) -> list[tuple]:
    """Rows of time and disk; the authors' npz are left in `root`/one."""
    ways = {
        "one": lambda: (reference_seconds(root, root / "one", 1),),
        "same": lambda: (reference_seconds(root, root / "same", args.workers),),
        "ours": lambda: our_build(root, args.workers),
    }
    refs = len(read_refs(root, "unc", "train"))
    theirs, theirs_parallel, ours = (values[0] / refs for values in medians(ways, args.repeats).values())
    split = PreparedSplit(root / PREPARED, "train")
    for name in ("one", "same"):
        check_identical(root / name, split)
    disk = size_of(root / "one") / len(split), size_of(split.folder) / len(split)
    return [
        ("s a ref, the authors' way in 1 process", theirs, ours, theirs / ours),
        (f"s a ref, the authors' way in {args.workers} processes", theirs_parallel, ours, theirs_parallel / ours),
        ("bytes an expression", *disk, disk[0] / disk[1]),
    ]


def reference_sample(folder: Path, i: int) -> tuple:
    """Sample i as the authors' data set makes it: float image 3 x H x W in 0..1, mask, ids."""
    with np.load(folder / f"unc_train_{i}.npz") as stored:
        image, mask, ids = stored["im_batch"], stored["mask_batch"], stored["text_batch"]
    image = torch.from_numpy(image.transpose(2, 0, 1)).contiguous().float().div(255)
    return image.sub(0.5).div(0.5), torch.from_numpy(mask)[None].float(), torch.from_numpy(ids)


def milliseconds(reads: dict[str, Callable[[int], object]], count: int, repeats: int) -> dict[str, float]:
    """Median ms of processor time a sample of each reader, which read in an order that is not the disk's.

    Processor time, as nothing here waits, is nearly the same where other programs share the machine.
    """
    order = np.random.default_rng(0).permutation(count).tolist()
    ways = {name: lambda read=read: deque(map(read, order), maxlen=0) for name, read in reads.items()}
    return {name: 1e3 * value / count for name, value in seconds(ways, repeats, clock=time.process_time).items()}


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
        if step % 100 == 0:
            collate([samples[i] for i in indices])["image"]
        if way == "first batch":
            break
    print(time.perf_counter() - started, before, peak_mb() - before)


def load(args, root: Path) -> None:
    """Print the tables of loading and of start-up."""
    split = PreparedSplit(root / PREPARED, "train")
    reads = {"authors' way": partial(reference_sample, root / "one"), "ours": TrainDataset(split).__getitem__}
    times = milliseconds(reads, min(300, len(split)), args.repeats)
    rows = [(name, value, 1e3 / value) for name, value in times.items()]
    print(table(("one process", "ms a sample", "samples/s a core"), rows))
    print(f"\nAsked: 600 samples/s on 16 cores. The rate of a core times 16: {16 * rows[1][2]:.0f}.\n")
    loaders = {n: lambda n=n: (throughput(split, n),) for n in (1, args.workers)}
    rows = [(n, rate, rate / n) for n, (rate,) in medians(loaders, args.repeats).items()]
    print(table(("loader processes", "samples/s", "samples/s a process"), rows))
    extend(split.folder, args.expressions)
    command = partial(fresh_process, __file__, "--folder", split.folder, "--start_up")
    starts = medians({way: lambda way=way: map(float, command(way)[2]) for way in WAYS}, args.repeats)
    print(f"\nStart-up, {args.expressions:,} expressions:\n")
    head = ("until the end of", "s after the imports", "MB after the imports", "MB more at the peak")
    print(table(head, [(way, *values) for way, values in starts.items()]))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photographs (default: scikit-image's)")
    parser.add_argument("--count", type=int, default=300, help="images of the split, with 7.5 expressions each")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of ours")
    parser.add_argument("--expressions", type=int, default=120_000, help="samples at start-up; RefCOCO has 120,624")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; the median counts")
    parser.add_argument("--start_up", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start_up:
        start_up(args.start_up, args.folder)
        return
    warnings.simplefilter("ignore")  # pycocotools
    torch.set_num_threads(1)
    print(f"{where()}\n{args.images or 'the photographs of scikit-image'}, {args.workers} processes for ours\n")
    with tempfile.TemporaryDirectory() as scratch:
        few, many = (make_set(Path(scratch, str(n)), n, args.images) for n in (args.count, 4 * args.count))
        print(table(("what", "authors' way", "ours", "ratio"), compare(args, few)))
        print("\nAll arrays bit-identical.\n")
        peaks = [(f"{root.name} images", f"{our_build(root, 1)[1]:.0f}") for root in (few, many)]
        print(table(("peak memory of a build, MB", "ours, 1 process"), peaks) + "\n")
        load(args, few)


if __name__ == "__main__":
    run_main(main)
