"""oIoU, mIoU and Prec@X from intersections and unions in pixels, and the table by expression length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import InputError

# X of Prec@X -> X in tenths, so that I / U >= X is decided in integers.
PRECISIONS = {"0.5": 5, "0.6": 6, "0.7": 7, "0.8": 8, "0.9": 9}

BOX_ACCURACY = "Acc@0.5"
# What `generalised` returns beside the number of expressions without an object, in percent.
GENERALISED = ("gIoU", "cIoU", "N-acc", "T-acc", "Prec@0.7", "Prec@0.8", "Prec@0.9")

# First and last number of tokens of each bucket, as used since Liu et al. 2017.
_GREF_BUCKETS = ((1, 5), (6, 7), (8, 10), (11, 20))
_UNC_BUCKETS = ((1, 2), (3, 3), (4, 5), (6, 20))
_BUCKETS = {"unc": _UNC_BUCKETS, "unc+": _UNC_BUCKETS, "referit": ((1, 1), (2, 2), (3, 4), (5, 20))}


@dataclass(frozen=True)
class SampleScore:
    """One expression judged: pixels in the intersection and the union of prediction and ground truth.

    `index` is the expression's number in its split, `length` its number of tokens before cutting to 20, `target` the
    number of pixels in the ground truth, 0 of an expression without an object. `box_iou` is the IoU of the two masks'
    bounding boxes, in [0, 1]. An empty mask has a box without pixels: 1 if both are empty, 0 if one is.
    """

    index: int
    name: str
    intersection: int
    union: int
    length: int
    sentence: str
    image_name: str
    target: int = -1  # not known: a samples.jsonl of version 1.0 lacks it, and the next
    box_iou: float | None = None

    @property
    def iou(self) -> float:
        """I / U in [0, 1]; 1 where there is nothing to find and nothing was found."""
        return self.intersection / self.union if self.union else 1.0

    @property
    def predicted(self) -> int:
        """Pixels of the prediction."""
        return self.intersection + self.union - self.target


def length_buckets(dataset: str) -> dict[str, tuple[int, int]]:
    """Label ("6-7") -> first and last number of tokens; RefCOCOg's hold for every data set that is not in the paper."""
    buckets = _BUCKETS.get(dataset, _GREF_BUCKETS)
    return {str(first) if first == last else f"{first}-{last}": (first, last) for first, last in buckets}


def summarise(scores: Sequence[SampleScore], dataset: str, is_generalised: bool = False) -> dict:
    """Metrics of a split in percent: `oIoU`, `mIoU`, `prec` {"0.5": ...}, `n_samples`, `by_length`, `Acc@0.5`.

    Of a split with expressions without an object (`is_generalised`) also `generalised`, what the function of that name
    returns.

    `by_length` maps a bucket ("6-7") to {"n", "oIoU", "mIoU"}; the two are None where n is 0. An expression of no
    token, or of more than the last bucket holds, has a row of its own ("0", ">20"), so that the rows add up to
    `n_samples`. A sample without mask and prediction counts as IoU 1 in mIoU and Prec@X and adds 0/0 to oIoU; if all
    are such, oIoU is 100. `Acc@0.5`, the metric of referring expression comprehension, is the share of samples whose
    `box_iou` is 0.5 or more; left out if a sample does not have it. Raises InputError without samples.
    """
    if not scores:
        raise InputError("no expression was evaluated, so there are no metrics: the split is empty")
    hits = {x: sum(10 * s.intersection >= tenths * s.union for s in scores) for x, tenths in PRECISIONS.items()}
    prec = {x: 100.0 * count / len(scores) for x, count in hits.items()}
    return {
        "oIoU": overall_iou(scores),
        "mIoU": mean_iou(scores),
        "prec": prec,
        "n_samples": len(scores),
        "by_length": _by_length(scores, length_buckets(dataset)),
        **_box_accuracy(scores),
        **({"generalised": generalised(scores)} if is_generalised else {}),
    }


def generalised(scores: Sequence[SampleScore]) -> dict:
    """`n_no_target` and the metrics of generalised expressions (GRES, Liu et al., CVPR 2023), in percent.

    gIoU is the mean of I / U, where an expression without an object counts 1 if nothing is predicted, else 0. cIoU is
    sum I / sum U, to which it adds 0/0 or the false mask's pixels. So these two are `mIoU` and `oIoU`. N-acc is the
    share of the expressions without an object for which nothing is predicted, T-acc of those with one for which
    something is, Prec@X of those with one that have I / U >= X; None where there are no such expressions.
    """
    without = [s for s in scores if s.target == 0]
    others = [s for s in scores if s.target != 0]
    shares = {
        "N-acc": _share([s.predicted == 0 for s in without]),
        "T-acc": _share([s.predicted > 0 for s in others]),
    }
    for name in GENERALISED[len(shares) + 2 :]:
        tenths = PRECISIONS[name.removeprefix("Prec@")]
        shares[name] = _share([10 * s.intersection >= tenths * s.union for s in others])
    return {"n_no_target": len(without), "gIoU": mean_iou(scores), "cIoU": overall_iou(scores), **shares}


def _share(hits: Sequence[bool]) -> float | None:
    return 100.0 * sum(hits) / len(hits) if hits else None


def overall_iou(scores: Sequence[SampleScore]) -> float:
    """Sum of intersections over sum of unions, in percent."""
    union = sum(s.union for s in scores)
    return 100.0 * sum(s.intersection for s in scores) / union if union else 100.0


def mean_iou(scores: Sequence[SampleScore]) -> float:
    """Mean of each sample's I / U, in percent; the same to the last digit in any order of the samples."""
    return 100.0 * math.fsum(s.iou for s in scores) / len(scores)


class RunningIoU:
    """oIoU and mIoU of the samples so far, for a progress bar."""

    def __init__(self):
        self.intersection, self.union, self.ious, self.count = 0, 0, 0.0, 0

    def add(self, scores: Sequence[SampleScore]) -> None:
        """Count more samples."""
        self.intersection += sum(s.intersection for s in scores)
        self.union += sum(s.union for s in scores)
        self.ious += sum(s.iou for s in scores)
        self.count += len(scores)

    def __str__(self) -> str:
        overall = self.intersection / self.union if self.union else 1.0
        return f"oIoU {100 * overall:.2f}, mIoU {100 * self.ious / self.count:.2f}"


def _box_accuracy(scores: Sequence[SampleScore]) -> dict[str, float]:
    ious = [s.box_iou for s in scores]
    return {} if None in ious else {BOX_ACCURACY: 100.0 * sum(iou >= 0.5 for iou in ious) / len(ious)}


def _by_length(scores: Sequence[SampleScore], buckets: dict[str, tuple[int, int]]) -> dict:
    longest = max(last for _, last in buckets.values())
    rows: dict[str, list[SampleScore]] = {label: [] for label in buckets}
    for score in scores:
        outside = f">{longest}" if score.length else "0"
        label = next((label for label, (first, last) in buckets.items() if first <= score.length <= last), outside)
        rows.setdefault(label, []).append(score)
    return {label: group_row(members) for label, members in rows.items()}


def group_row(members: Sequence[SampleScore]) -> dict:
    """A row of a table by length, size or word: {"n", "oIoU", "mIoU"}, the two in percent, None of no members."""
    if not members:
        return {"n": 0, "oIoU": None, "mIoU": None}
    return {"n": len(members), "oIoU": overall_iou(members), "mIoU": mean_iou(members)}


def format_table(rows: dict[str, dict]) -> str:
    """Results for the screen: title -> what `summarise` returns; one line a result, below a single one its lengths."""
    width = max(len(title) for title in rows)
    precisions = "  ".join(f"Prec@{x}" for x in PRECISIONS)
    lines = [f"{'':{width}}  {'samples':>8}  {'oIoU':>6}  {'mIoU':>6}  {precisions}  {BOX_ACCURACY}"]
    for title, metrics in rows.items():
        numbers = [f"{metrics['n_samples']:8d}", *(f"{metrics[key]:6.2f}" for key in ("oIoU", "mIoU"))]
        numbers += [f"{x:8.2f}" for x in metrics["prec"].values()]
        numbers.append(f"{metrics[BOX_ACCURACY]:7.2f}" if BOX_ACCURACY in metrics else f"{'-':>7}")
        lines.append("  ".join([f"{title:{width}}", *numbers]))
    if several := {title: metrics["generalised"] for title, metrics in rows.items() if "generalised" in metrics}:
        names = "  ".join(f"{name:>8}" for name in GENERALISED)
        lines += ["", f"{'':{width}}  {'no object':>9}  {names}"]
        for title, metrics in several.items():
            shown = (f"{'-':>8}" if metrics[name] is None else f"{metrics[name]:8.2f}" for name in GENERALISED)
            lines.append("  ".join([f"{title:{width}}", f"{metrics['n_no_target']:9d}", *shown]))
    if len(rows) == 1:
        metrics = rows[title]
        lines += ["", f"{title}, by number of tokens"]
        for label, row in metrics["by_length"].items():
            overall, mean = (f"{row[key]:6.2f}" if row["n"] else f"{'-':>6}" for key in ("oIoU", "mIoU"))
            lines.append(f"  {label:>5}  {row['n']:8d}  oIoU {overall}  mIoU {mean}")
    return "\n".join(lines)
