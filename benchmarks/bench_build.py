"""build_batches.py against the authors' way of making the same arrays: seconds a ref, bytes an expression, memory.

    python benchmarks/bench_build.py
    python benchmarks/bench_build.py --images /path/to/photographs --count 200

The authors' way is contained here: for each ref the image is decoded, image and mask are resized by scikit-image, and
each expression gets an npz with both. It runs in one process, as theirs does, and, for fairness, in as many as ours.
All arrays must be bit-identical. Ours is timed as users run it, start of Python included.
"""

import os
import shutil
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import skimage
from PIL import Image
from skimage.transform import resize

from benchmarks.photos import SENTENCES, make_set
from benchmarks.report import IMAGES, fresh_process, medians, table, where
from prepare.public import read_refs
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.prepared import PreparedSplit
from utils.text import Vocabulary

SIZE = 480
ROOT = Path(__file__).resolve().parents[1]


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
    command = ("-d", "unc", "-t", "train", "--root", root, "--workers", workers)
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
    """Rows of time and disk."""
    one, same = root / "one", root / "same"
    ways = {
        "one": lambda: (reference_seconds(root, one, 1),),
        "same": lambda: (reference_seconds(root, same, args.workers),),
        "ours": lambda: our_build(root, args.workers),
    }
    times = medians(ways, args.repeats)
    refs = len(read_refs(root, "unc", "train"))
    theirs, theirs_parallel, ours = (times[name][0] / refs for name in ways)
    folder = root / f"data/mscoco/unc_{SIZE}_batch"
    split = PreparedSplit(folder, "train")
    check_identical(one, split)
    check_identical(same, split)
    disk = size_of(one) / len(split), size_of(folder) / len(split)
    return [
        ("s a ref, the authors' way in 1 process", theirs, ours, theirs / ours),
        (f"s a ref, the authors' way in {args.workers} processes", theirs_parallel, ours, theirs_parallel / ours),
        ("bytes an expression", *disk, disk[0] / disk[1]),
    ]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help=IMAGES)
    parser.add_argument("--count", type=int, default=300, help="images of the split")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of ours")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way; the median counts")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # pycocotools
    print(f"{where()}\n{'photographs' if args.images else 'synthetic images'}, {args.workers} processes for ours\n")
    with tempfile.TemporaryDirectory() as scratch:
        few, many = (make_set(Path(scratch, str(n)), n, args.images) for n in (args.count, 4 * args.count))
        print(table(("what", "authors' way", "ours", "ratio"), compare(args, few)))
        print("\nAll arrays bit-identical.\n")
        peaks = [(f"{root.name} images", f"{our_build(root, 1)[1]:.0f}") for root in (few, many)]
        print(table(("peak memory of a build, MB", "ours, 1 process"), peaks))


if __name__ == "__main__":
    run_main(main)
