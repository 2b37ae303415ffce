"""Make a small synthetic data set of coloured shapes, in the format of RefCOCO (`-d unc`).

    python tools/make_shapes.py --root shapes
    python build_batches.py --root shapes -d unc -t train --img-size 64

With --generalised also in that of gRefCOCO (`-d grefcoco`), whose expressions mean one shape, several or none.

The same arguments give the same bytes, whatever the number of workers.
"""

import os
import sys
from argparse import SUPPRESS
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, from wherever this is run

from tools.shapes.dataset import Plan, write_dataset
from utils.cli import ArgumentParser, run_main
from utils.options import COUNT, COUNT_OR_0, add_options, option, read_options


@dataclass
class Place:
    """Where the files go."""

    root: Path = option(..., "folder to write data/ and external/ in; created if it is missing", metavar="DIR")
    overwrite: bool = option(False, "replacement of other shapes in --root")
    workers: int = option(os.cpu_count() or 1, "number of processes", limits=COUNT)


@dataclass
class Content:
    """What decides every byte of them."""

    images: int = option(1000, "train images, with about 8 expressions each", limits=COUNT)
    val_images: int | None = option(None, "val images (default: a tenth of --images)", limits=COUNT)
    test_images: int | None = option(None, "testA images, and testB images (default: a 20th of --images)", limits=COUNT)
    image_size: int = option(128, "longer side of the images in pixels", limits=(64, 2048))
    seed: int = option(1, "seed of scenes, expressions and splits", limits=COUNT_OR_0)
    generalised: bool = option(False, "also expressions for several shapes or none, in gRefCOCO's format")
    level: str = option("easy", SUPPRESS, choices=["easy"])  # accepted as in version 1.0


def main() -> None:
    """Parse, write, say what was written."""
    parser = ArgumentParser(prog="make_shapes.py", description=__doc__)
    for title, kind in (("files", Place), ("images", Content)):
        add_options(parser.add_argument_group(title), kind)
    args = parser.parse_args()
    place, content = read_options(Place, args), read_options(Content, args)
    val = content.val_images or max(1, content.images // 10)
    test = content.test_images or max(1, content.images // 20)
    images = {"train": content.images, "val": val, "testA": test, "testB": test}
    plan = Plan(images, content.image_size, content.seed, content.generalised)
    written = write_dataset(plan, place.root, place.workers, place.overwrite)
    if written is None:
        print(f"{place.root}: these shapes are there already, nothing to do")
        return
    splits = ", ".join(f"{split} {written[split]:,}" for split in images)
    print(f"{place.root}: {plan.count} images; expressions: {splits}")


if __name__ == "__main__":
    run_main(main)
