"""Where does a checkpoint fail? `evaluate.py --report`: one HTML file with tables, charts and a gallery of a split.

The file needs no other and no network. It has room for the thumbnails of a whole split of RefCOCO (10,834 expressions
of 1,500 images); of larger ones the worst, the median and the best get them, until the file has MAX_BYTES.
"""

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.metrics import SampleScore, group_row, mean_iou, overall_iou, summarise
from eval.report import page as report_page
from eval.report.thumbnails import Thumbnails
from eval.results import read_result
from utils.datasets import title
from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, json_value, read_bytes, refusing
from utils.files.writing import atomic_write
from utils.prepared import PreparedSplit
from utils.text import tokenize

MAX_BYTES = 19_500_000  # of the file


MAX_SENTENCE = 200  # characters that are shown


MAX_SAMPLES_BYTES = 256 * MEBIBYTE


SIZE_EDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of the image


NO_OBJECT = "none"  # the row of empty masks


BINS = 20  # of the histogram


FOUND = 0.5  # IoU from which an object counts as found


CHANGED = 0.05  # difference in IoU beyond which an expression counts as better or worse


MAX_WORDS = 500  # of the table by word; the rarest go first


_OVERLAY = 7  # its place in a row of the gallery


_REMEDY = "write it again with eval/evaluate.py"


@dataclass(frozen=True)
class Other:
    """The result that --against names: its metrics.json and its scores, by index."""

    metrics: dict
    scores: list[SampleScore]


def read_other(path: Path, split: PreparedSplit) -> Other:
    """The metrics.json at `path` (or in that folder) and the samples.jsonl beside it.

    Raises InputError if they are damaged, a control, of other expressions than those of `split`, or not of one run.
    """
    path = path / "metrics.json" if path.is_dir() else path
    result = read_result(path)
    if result is None:
        raise InputError(f"--against {path}: is of a control, not a result; evaluate without --rotate_expressions")
    if result.of != (split.dataset, split.split) or result.metrics["n_samples"] != len(split):
        theirs = f"{' '.join(result.of)} with {result.metrics['n_samples']} expressions"
        raise InputError(f"--against {path}: is of {theirs}, not of {split.dataset} {split.split} with {len(split)}")
    beside = path.with_name("samples.jsonl")
    scores = _read_scores(beside)
    if len(scores) != len(split) or any(score.sentence != split.text(i)[1] for i, score in enumerate(scores)):
        raise InputError(f"--against {beside}: is of other expressions than {split.folder}; {_REMEDY}")
    if abs(overall_iou(scores) - result.metrics["oIoU"]) > 1e-6:
        raise InputError(f"--against {path}: its oIoU is not that of the samples.jsonl beside it; {_REMEDY}")
    return Other(result.metrics, scores)


def _read_scores(path: Path) -> list[SampleScore]:
    lines = read_bytes(path, MAX_SAMPLES_BYTES, "samples.jsonl", _REMEDY).splitlines()
    with refusing(path, "samples.jsonl", _REMEDY):
        scores = [SampleScore(**json_value(line)) for line in lines]
        for index, score in enumerate(scores):
            numbers = (score.index, score.intersection, score.union, score.length)
            texts = (score.name, score.sentence, score.image_name)
            kinds = all(type(n) is int for n in numbers) and all(type(text) is str for text in texts)
            if not kinds or score.index != index or not 0 <= score.intersection <= score.union < 2**53:
                raise ValueError(f"line {index + 1} is no score")
    return scores


def write_report(
    path: Path, metrics: dict, scores: Sequence[SampleScore], thumbnails: Thumbnails, other: Other | None = None
) -> None:
    """Write the page of a split.

    Args: metrics, what goes to metrics.json; scores, of the whole split by index; thumbnails, gathered.
    """
    numbers, shown = facts(metrics, scores, thumbnails, other), gallery(scores, thumbnails, other)
    room = MAX_BYTES - len(report_page.render(numbers, shown))
    add_pictures(shown, thumbnails, room, by_interest(scores, other.scores if other else None))
    page = report_page.render(numbers, shown)
    with atomic_write(path) as file:
        file.write(page)


def facts(metrics: dict, scores: Sequence[SampleScore], thumbnails: Thumbnails, other: Other | None) -> dict:
    """All numbers of the page but the gallery's.

    `title`; `control`, None for a result; `sides`, one for this result and one for the other (checkpoint, metrics,
    histogram, tables by length and size, record); `words`; `changes`, None without the other.
    """
    shares = [thumbnails.shots[score.index].share for score in scores]
    sides = [_side(metrics, scores, shares, metrics["dataset"])]
    if other:
        sides.append(_side(other.metrics, other.scores, shares, metrics["dataset"]))
    return {
        "title": f"{title(metrics['dataset'])} {metrics['split']}",
        "control": metrics.get("control"),
        "sides": sides,
        "words": _listed(by_word(scores, other.scores if other else None)),
        "changes": changes(scores, other.scores) if other else None,
        "found": FOUND,
        "changed": CHANGED,
    }


def _side(metrics: dict, scores: Sequence[SampleScore], shares: Sequence[float], dataset: str) -> dict:
    numbers = summarise(scores, dataset)
    return numbers | {
        "checkpoint": _title(metrics["checkpoint"]),
        "histogram": histogram(scores),
        "by_length": _listed(numbers["by_length"]),
        "by_size": _listed(by_size(scores, shares)),
        "record": _record(metrics),
    }


def _listed(table: dict[str, dict]) -> list[dict]:
    """The rows with their label inside: JavaScript does not keep the order of keys such as "3"."""
    return [{"label": label, **row} for label, row in table.items()]


def histogram(scores: Iterable[SampleScore]) -> list[int]:
    """How many samples have an IoU in each of BINS equal steps from 0 to 1; the last includes 1."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, BINS * score.intersection // score.union) if score.union else BINS - 1] += 1
    return counts


def size_label(share: float) -> str:
    """The row by mask size for the `share` of the image, in [0, 1], that a true mask covers: "2–5%" for 0.03."""
    if not share:
        return NO_OBJECT
    edges = (0.0, *SIZE_EDGES, 1.0)
    step = sum(share >= edge for edge in SIZE_EDGES)
    return f"{100 * edges[step]:g}–{100 * edges[step + 1]:g}%"


def by_size(scores: Sequence[SampleScore], shares: Sequence[float]) -> dict[str, dict]:
    """Label -> {"n", "oIoU", "mIoU"} by the `shares` of the image that the true masks cover, the smallest first."""
    groups: dict[str, list[SampleScore]] = {size_label(edge): [] for edge in (SIZE_EDGES[0] / 2, *SIZE_EDGES)}
    for score, share in zip(scores, shares, strict=True):
        groups.setdefault(size_label(share), []).append(score)
    return {label: group_row(members) for label, members in groups.items()}


def by_word(scores: Sequence[SampleScore], others: Sequence[SampleScore] | None = None) -> dict[str, dict]:
    """Words that stand in enough expressions, the one with the lowest mIoU first: the numbers of `by_size`.

    With `others` also "before", their mIoU.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for place, score in enumerate(scores):
        for word in {piece for piece in tokenize(score.sentence) if piece.isalnum() and len(piece) <= 40}:
            groups[word].append(place)
    enough = max(5, len(scores) // 500)
    often = [word for word in groups if len(groups[word]) >= enough]
    often.sort(key=lambda word: (-len(groups[word]), word))
    rows = {word: group_row([scores[i] for i in groups[word]]) for word in often[:MAX_WORDS]}
    for word in rows if others else ():
        rows[word]["before"] = mean_iou([others[i] for i in groups[word]])
    return {word: rows[word] for word in sorted(rows, key=lambda word: (rows[word]["mIoU"], word))}


def changes(ours: Sequence[SampleScore], theirs: Sequence[SampleScore]) -> dict[str, int]:
    """How many expressions got better or worse by more than CHANGED, and crossed FOUND upwards or downwards."""
    pairs = [(a.iou, b.iou) for a, b in zip(ours, theirs, strict=True)]
    better, worse = sum(a - b > CHANGED for a, b in pairs), sum(b - a > CHANGED for a, b in pairs)
    return {
        "better": better,
        "same": len(pairs) - better - worse,
        "worse": worse,
        "now_found": sum(a >= FOUND > b for a, b in pairs),
        "now_lost": sum(b >= FOUND > a for a, b in pairs),
    }


def gallery(scores: Sequence[SampleScore], thumbnails: Thumbnails, other: Other | None) -> dict:
    """The gallery's data, as yet without pictures: `names` and `images` by number, and a row for each expression.

    A row is [sentence, name, number of the image, I, U, tokens, row by mask size, overlay, and with `other` its I, U].
    """
    names = list(dict.fromkeys(score.image_name for score in scores))
    number = {name: i for i, name in enumerate(names)}
    rows = []
    for i, score in enumerate(scores):
        row = [one_line(score.sentence, MAX_SENTENCE), score.name, number[score.image_name], score.intersection]
        row += [score.union, score.length, size_label(thumbnails.shots[score.index].share), ""]
        rows.append(row + [other.scores[i].intersection, other.scores[i].union] if other else row)
    return {"names": names, "images": [""] * len(names), "rows": rows}


def add_pictures(shown: dict, thumbnails: Thumbnails, room: int, order: Iterable[int]) -> None:
    """Put overlays and images into `shown`, what `gallery` returns, as base64: in `order`, until `room` is full."""
    for i in order:
        row, shot = shown["rows"][i], thumbnails.shots[i]
        overlay = base64.b64encode(shot.overlay).decode()
        image = shown["images"][row[2]] or base64.b64encode(thumbnails.images[shot.image]).decode()
        room -= len(overlay) + (0 if shown["images"][row[2]] else len(image))
        if room < 0:
            return
        row[_OVERLAY], shown["images"][row[2]] = overlay, image


def by_interest(scores: Sequence[SampleScore], others: Sequence[SampleScore] | None) -> list[int]:
    """Places of all scores, those first that a reader looks for first: in turn the worst, median, best left over.

    With `others`, what lost and what gained most take turns with them.
    """
    order = sorted(range(len(scores)), key=lambda i: (scores[i].iou, i))
    middle = scores[order[len(order) // 2]].iou
    lists = [order, sorted(order, key=lambda i: abs(scores[i].iou - middle)), order[::-1]]
    if others:
        change = sorted(order, key=lambda i: scores[i].iou - others[i].iou)
        lists += [change, change[::-1]]
    return list(dict.fromkeys(i for turn in zip(*lists, strict=True) for i in turn))


def _title(checkpoint: dict) -> str:
    """A checkpoint by its folder, file and step."""
    file = Path(checkpoint["file"])
    step = f", step {checkpoint['step']:,}" if checkpoint["step"] else ""
    return one_line("/".join(filter(None, (file.parent.name, file.name))), 80) + step


def _record(metrics: dict) -> dict[str, str]:
    """What the numbers can be traced by, for people. A metrics.json from elsewhere may lack any of it."""
    found = {"checkpoint": metrics["checkpoint"]["file"], "sha256": metrics["checkpoint"].get("sha256")}
    data = metrics.get("data")
    found["data"] = data.get("folder") if isinstance(data, dict) else None
    found["settings"] = ", ".join(f"{key} {value}" for key, value in metrics["settings"].items())
    found |= {key: metrics.get(key) for key in ("date", "code", "device", "command")}
    return {key: one_line(value, 400) for key, value in found.items() if value is not None}
