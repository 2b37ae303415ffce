"""Evaluation of the full model at 480 x 480 end to end, from files to scores, ours against the authors' way.

    python benchmarks/bench_evaluate.py
    python benchmarks/bench_evaluate.py --images 4 --repeats 5 --device cuda

The authors' way (benchmarks/plain_restr.py) reads, encodes and segments one expression at a time; ours is
eval/evaluator.py as eval/evaluate.py calls it. Images have 7.5 expressions (unc val: 7.2). The two ways take turns; the
scores of all samples must be the same to the pixel, except for logits that float32 cannot tell from the threshold.
"""

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.bench_model import build, seconds
from benchmarks.photos import make_set
from benchmarks.report import table, where
from eval.evaluator import EvalSettings, evaluate
from models.inference import resize_and_crop, to_canvas
from prepare.writer import BuildOptions
from prepare.writer import build as build_batches
from utils.cli import ArgumentParser, run_main
from utils.device import Ranks
from utils.errors import InputError
from utils.prepared import PreparedSplit

CLOSE = 1e-5  # share of a sample's pixels that may differ


@torch.inference_mode()
def reference_scores(reference, model, split: PreparedSplit, device: torch.device) -> list[tuple[int, int]]:
    """I and U of each expression, one at a time; `model` only tells how images are normalised."""
    scores = []
    for index in range(len(split)):
        image = torch.from_numpy(split.image(index)).to(device)
        ids = torch.from_numpy(split.text(index)[0])[None].to(device)
        logits = reference(to_canvas(model, image), ids)[0]
        found = resize_and_crop(logits, *image.shape[:2])[0, 0] >= EvalSettings.threshold
        mask = torch.from_numpy(split.mask(index)).to(device)
        scores.append(((found & mask).sum().item(), (found | mask).sum().item()))
    return scores


def check_equal(theirs: list[tuple[int, int]], ours: list[tuple[int, int]], pixels: int) -> int:
    """The largest difference of a count in pixels. Raises InputError if it is more than rounding can make."""
    worst = max(abs(a - b) for pair in zip(theirs, ours, strict=True) for a, b in zip(*pair, strict=True))
    if worst > CLOSE * pixels:
        raise InputError(f"the two ways differ by {worst} of {pixels} pixels in a sample: nothing was timed")
    return worst


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2, help="images of the split")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way after the first")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    reference, model = build("reference", device)[0], build("ours", device)[0]
    with tempfile.TemporaryDirectory() as scratch:
        root = make_set(Path(scratch), args.images, split="val")
        split = PreparedSplit(build_batches(BuildOptions(root, "unc", "val", (480, 480), workers=1)).folder, "val")
        work = {
            "reference": lambda: reference_scores(reference, model, split, device),
            "ours": lambda: evaluate(model, split, ranks=Ranks(device), progress=False),
        }
        ours = [(score.intersection, score.union) for score in work["ours"]()]
        worst = check_equal(work["reference"](), ours, split.image(0)[..., 0].size)
        time_of = seconds(work, args.repeats, device, warm=0)
    print(f"{where(args.device)}\n{args.images} images, {len(split)} expressions, median of {args.repeats}\n")
    rate = {way: len(split) / value for way, value in time_of.items()}
    row = ("expressions a second", rate["reference"], rate["ours"], rate["ours"] / rate["reference"])
    print(table(("what", "authors' way", "ours", "ratio"), [row]))
    print(f"\nlargest difference in a sample's I or U: {worst} pixels")


if __name__ == "__main__":
    run_main(main)
