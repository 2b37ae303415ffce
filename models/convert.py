"""Convert a checkpoint of the authors' code to a self-describing one.

    python -m models.convert REF.pth --config CONFIG.json --vocabulary FILE --out weights/X/unc_25000.pth

CONFIG.json holds the authors' `v_backbone`, `l_backbone` and `mm_fusion` dicts; without it the default size at
480 x 480 is taken.
"""

import re
from pathlib import Path

from models.checkpoint import MAX_STEP, read_checkpoint, save_checkpoint
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.files.reading import read_json
from utils.text import Vocabulary


def parse_args():
    """The command line."""
    parser = ArgumentParser(prog="python -m models.convert", description=__doc__)
    parser.add_argument("reference", type=Path, metavar="REF.pth", help="checkpoint written by the authors' code")
    parser.add_argument("--config", type=Path, metavar="FILE", help="its configuration, JSON (default: the paper's)")
    words = "vocabulary that it was trained with, such as data/vocabulary_Gref.txt"
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", required=True, help=words)
    name = "file to write, named DATASET_STEP.pth so that evaluate.py finds it"
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help=name)
    parser.add_argument("--dataset", help="data set that it was trained on (default: from the name of --out)")
    return parser.parse_args()


def main() -> None:
    """Convert one file."""
    args = parse_args()
    named = re.fullmatch(r"(.+)_(\d+)", args.out.stem)
    if args.out.exists():
        raise InputError(f"--out {args.out}: exists; give another name, or move it away")
    if named and int(named[2]) > MAX_STEP:
        raise InputError(f"--out {args.out}: a step is at most {MAX_STEP:,}; give another name")
    vocabulary = Vocabulary.load(args.vocabulary)
    config = read_json(args.config, "the authors' configuration") if args.config else None
    checkpoint = read_checkpoint(args.reference, config)
    if checkpoint.vocabulary is not None:
        raise InputError(f"{args.reference} is a self-describing checkpoint already")
    size = checkpoint.config.language.vocabulary_size
    if len(vocabulary) != size:
        raise InputError(f"{args.vocabulary} has {len(vocabulary)} words, but {args.reference} was trained with {size}")
    checkpoint.vocabulary = vocabulary.words
    checkpoint.data["dataset"] = args.dataset or (named and named[1])
    checkpoint.data["vocabulary_sha256"] = vocabulary.sha256
    checkpoint.step = int(named[2]) if named else 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(args.out, checkpoint)
    print(
        f"{args.out}: {sum(value.numel() for value in checkpoint.weights.values()):,} numbers, step {checkpoint.step}"
    )


if __name__ == "__main__":
    run_main(main)
