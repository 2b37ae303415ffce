"""Make a small synthetic data set of coloured shapes, in the format of RefCOCO (`-d unc`).

    python tools/make_shapes.py --root shapes
    python build_batches.py --root shapes -d unc -t train --img-size 64

The same arguments give the same bytes, whatever the number of workers.
"""

import os
import sys
from argparse import SUPPRESS
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, from wherever this is run

from tools.shapes.dataset import Plan, write_dataset
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError

IMAGE_SIZES = (64, 2048)


def parser() -> ArgumentParser:
    """The command line."""
    result = ArgumentParser(prog="make_shapes.py", description=__doc__)
    where = result.add_argument_group("where")
    root = "folder to write data/ and external/ in; created if it is missing"
    where.add_argument("--root", type=Path, metavar="DIR", required=True, help=root)
    where.add_argument("--overwrite", action="store_true", help="replacement of other shapes in --root")
    what = result.add_argument_group("what (these decide every byte)")
    what.add_argument("--level", choices=["easy"], default="easy", help=SUPPRESS)  # accepted as in version 1.0
    what.add_argument("--images", type=int, default=1000, help="train images, with about 8 expressions each")
    what.add_argument("--val_images", type=int, default=SUPPRESS, help="val images (default: a tenth of --images)")
    test = "testA images, and testB images (default: a 20th of --images)"
    what.add_argument("--test_images", type=int, default=SUPPRESS, help=test)
    what.add_argument("--image_size", type=int, default=128, help="longer side of the images in pixels")
    what.add_argument("--seed", type=int, default=1, help="seed of scenes, expressions and splits, 0 or more")
    how = result.add_argument_group("how")
    how.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    return result


def main() -> None:
    """Parse, check, write, say what was written."""
    options = parser().parse_args()
    low, high = IMAGE_SIZES
    if not low <= options.image_size <= high:
        raise InputError(f"--image_size {options.image_size}: give {low} to {high} pixels")
    for name, least in (("images", 1), ("val_images", 1), ("test_images", 1), ("seed", 0), ("workers", 1)):
        if getattr(options, name, least) < least:
            raise InputError(f"--{name} {getattr(options, name)}: give at least {least}")
    val = getattr(options, "val_images", max(1, options.images // 10))
    test = getattr(options, "test_images", max(1, options.images // 20))
    images = {"train": options.images, "val": val, "testA": test, "testB": test}
    plan = Plan(images, options.image_size, options.seed)
    written = write_dataset(plan, options.root, options.workers, options.overwrite)
    if written is None:
        print(f"{options.root}: these shapes are there already, nothing to do")
        return
    splits = ", ".join(f"{split} {written[split]:,}" for split in plan.images)
    print(f"{options.root}: {plan.count} images; expressions: {splits}")


if __name__ == "__main__":
    run_main(main)
