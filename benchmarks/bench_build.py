"""build_batches.py against the reference's way of making the same arrays: seconds a ref, bytes an expression, memory.

    python benchmarks/bench_build.py
    python benchmarks/bench_build.py --images /path/to/photographs --count 200

The reference's way is contained here: one process; for each ref the image is decoded and it and the mask are resized by
scikit-image; each expression gets an npz with both. It runs in 1 process, as the reference does, and, for fairness, in
as many as ours. All arrays must be bit-identical. Ours is timed as users run it, start of Python included.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import skimage
from PIL import Image
from skimage.transform import resize

from benchmarks.photos import SENTENCES, make_set
from benchmarks.report import table, where
from prepare.public import read_refs
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError, one_line
from utils.prepared import PreparedSplit
from utils.text import Vocabulary

SIZE = 480
ROOT = Path(__file__).resolve().parents[1]
SMALL_PARENT = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


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
    """One ref the reference's way; `work`: the ref, its first number, the vocabulary and the folder."""
    ref, first, vocabulary, folder = work
    image = np.asarray(Image.open(ref.image_path).convert("RGB"))
    image = skimage.img_as_ubyte(fit_and_pad(image))
    mask = fit_and_pad(ref.mask().astype(np.float32)) > 0
    for number, sentence in enumerate(ref.sentences, first):
        np.savez(
            folder / f"unc_train_{number}.npz",
            text_batch=vocabulary.ids(sentence),
            im_batch=image,
            mask_batch=mask,
            sent_batch=[sentence],
            im_name_batch=ref.image_name,
        )


def reference_seconds(root: Path, folder: Path, processes: int) -> float:
    """Build the split into `folder`; reading the annotations is part of the time."""
    folder.mkdir()
    started = time.perf_counter()
    refs, vocabulary = read_refs(root, "unc", "train"), Vocabulary.load(root / "data/vocabulary_Gref.txt")
    work = [(ref, SENTENCES * i, vocabulary, folder) for i, ref in enumerate(refs)]
    if processes == 1:
        list(map(reference_ref, work))
    else:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(reference_ref, work))
    return time.perf_counter() - started


def our_seconds(root: Path, workers: int) -> tuple[float, float]:
    """Seconds of the whole command, and the peak MB of its largest process."""
    command = [ROOT / "build_batches.py", "-d", "unc", "-t", "train", "--root", root, "--workers", str(workers)]
    # A process's peak is never below what its parent held, so a small one stands between.
    done = subprocess.run([sys.executable, "-c", SMALL_PARENT, *command], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"build_batches.py failed: {one_line(done.stderr, 200)}")
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e6


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


def compare(args, scratch: Path) -> list[tuple]:
    """Rows of time and disk; the ways take turns, times are medians."""
    times = {"one": [], "same": [], "ours": []}
    for turn in range(args.repeats):
        root = make_set(scratch / str(turn), args.count, args.images)
        refs = read_refs(root, "unc", "train")
        times["one"].append(reference_seconds(root, root / "one", 1) / len(refs))
        times["same"].append(reference_seconds(root, root / "same", args.workers) / len(refs))
        times["ours"].append(our_seconds(root, args.workers)[0] / len(refs))
    folder = root / f"data/mscoco/unc_{SIZE}_batch"
    split = PreparedSplit(folder, "train")
    check_identical(root / "one", split)
    check_identical(root / "same", split)
    one, same, ours = (median(times[name]) for name in times)
    disk = size_of(root / "one") / len(split), size_of(folder) / len(split)
    return [
        ("s a ref, the reference's way in 1 process", one, ours, one / ours),
        (f"s a ref, the reference's way in {args.workers} processes", same, ours, same / ours),
        ("bytes an expression", *disk, disk[0] / disk[1]),
    ]


def peak_rows(args, scratch: Path) -> list[tuple]:
    """Peak memory of a build in one process, over `count` images and over four times as many."""
    rows = []
    for factor in (1, 4):
        count = args.count * factor
        root = make_set(scratch / f"peak{factor}", count, args.images)
        rows.append((f"{count} images", f"{our_seconds(root, 1)[1]:.0f}"))
    return rows


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of photographs (default: synthetic ones)")
    parser.add_argument("--count", type=int, default=300, help="images of the split")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of ours, this machine's cores")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; the median counts")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # pycocotools
    print(f"{where()}\n{'photographs' if args.images else 'synthetic images'}, {args.workers} processes for ours\n")
    with tempfile.TemporaryDirectory() as scratch:
        print(table(("what", "reference's way", "ours", "ratio"), compare(args, Path(scratch))))
        print("\nAll arrays bit-identical.\n")
        print(table(("peak memory of a build, MB", "ours, 1 process"), peak_rows(args, Path(scratch))))


if __name__ == "__main__":
    run_main(main)
