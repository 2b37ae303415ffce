"""Prepare the data of one split from annotations and images.

    python build_batches.py -d unc -t train --img-size 480
    python build_batches.py -d unc -t val --img-size 480

This reads data/ and external/ below --root and writes data/mscoco/unc_480_batch/. An interrupted build goes on where it
stopped when the same command is run again; with --verify it reads what was built instead. On a cluster, `--shard i/n`
for i = 1 .. n builds the parts of a split.
Your own data (docs/CUSTOM_DATA.md) go to data/custom/NAME_480_batch/:

    python build_batches.py -d NAME --refs FILE.jsonl -t train
    python build_batches.py -d NAME --refs FILE --instances FILE --images DIR -t train
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker process fills one core; set before NumPy is loaded

from prepare.folder import folder_path
from prepare.own_data import add_own_data, own_data
from prepare.workers import stop_in_order
from prepare.writer import BuildOptions, build, damage
from utils.cli import ArgumentParser, run_main
from utils.datasets import NAMES, short_name
from utils.errors import InputError
from utils.options import size
from utils.prepared import is_plain_name

MAX_SHOWN = 1_000  # damaged files


def main() -> None:
    options, verify = parse()
    stop_in_order()
    if verify:
        _verify(options)
        return
    for line in build(options).report:
        print(line)


def _verify(options: BuildOptions) -> None:
    folder = folder_path(options.root, options.dataset, options.size)
    faults = damage(folder, options.split, options.workers)
    for fault in faults[:MAX_SHOWN]:
        print(fault)
    if faults:
        more = f", of which the first {MAX_SHOWN} are" if len(faults) > MAX_SHOWN else ""
        remedy = "delete those files and run the same command without --verify"
        raise InputError(f"{folder}: {len(faults):,} faults in {options.split}{more} named above: {remedy}")
    print(f"{folder}: all files of {options.split} are as they were written")


def parse() -> tuple[BuildOptions, bool]:
    """What to build, and whether only to verify it."""
    parser = ArgumentParser(description=__doc__)
    _add_what(parser.add_argument_group("what to build"))
    add_own_data(parser.add_argument_group("your own data"))
    how = parser.add_argument_group("how")
    how.add_argument("--workers", type=at_least_one, default=os.cpu_count(), help="processes, this machine's cores")
    how.add_argument("--shard", type=shard, default="1/1", metavar="I/N", help="the I-th of N parts, I from 1 to N")
    npz = "write the large npz files of the authors' code, each with image and mask"
    how.add_argument("--self_contained", action="store_true", help=npz)
    how.add_argument("--skip_empty", action="store_true", help="leave out empty expressions instead of stopping at one")
    verify = "only read all files of a split that is complete and compare them with their check sums"
    how.add_argument("--verify", action="store_true", help=verify)
    flags = vars(parser.parse_args())
    verify = flags.pop("verify")
    if not is_plain_name(flags["split"]):
        raise InputError(f"-t {flags['split']!r}: a split's name has letters, digits and . _ + - only, at most 64")
    files = (flags.pop(name) for name in ("refs", "instances", "images"))
    own = own_data(flags["dataset"], *files, flags["skip_empty"])
    if own:
        own.require_flags()
    else:
        flags["dataset"] = short_name(flags["dataset"])
    return BuildOptions(size=flags.pop("img_size"), own=own, **flags), verify


def _add_what(group) -> None:
    names = f"{NAMES}, or a name for your own data"
    group.add_argument("-d", "--dataset", required=True, metavar="NAME", help=names)
    splits = "train, val, testA, testB, trainval or test; of your own data any"
    group.add_argument("-t", "--split", required=True, help=splits)
    side = "pixels, the side of the square canvas or HEIGHT,WIDTH"
    group.add_argument("--img-size", "--img_size", type=size, default="480", metavar="SIZE", help=side)
    where = "folder that holds data/ and external/ (default: the repository)"
    group.add_argument("--root", type=Path, default=Path(__file__).resolve().parent, metavar="DIR", help=where)
    words = "(default: ROOT/data/vocabulary_Gref.txt, _referit.txt or of your own data _NAME.txt)"
    group.add_argument("--vocabulary", type=Path, metavar="FILE", help=f"word list that gives the ids {words}")


def shard(text: str) -> tuple[int, int]:
    number, count = (int(part) for part in text.split("/"))
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return number, count


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    run_main(main)
