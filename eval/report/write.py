"""Where does a checkpoint fail? `evaluate.py --report`: one HTML file with tables, charts and a gallery of a split.

The file needs no other file and no network. It has room for the images of a whole split of RefCOCO (10,834 expressions
of 1,500 images, about 64 MB); of larger splits the worst, the median and the best expressions get them, until the file
has MAX_BYTES.

What comes from data (expressions, names, paths) is never put into the markup: it travels as JSON in a block that no
browser runs, and the scripts set it as text. The page's own policy lets it run these scripts only and load nothing.
"""

import base64
import hashlib
import io
import json
import re
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from PIL import Image

from eval.evaluator import Prediction
from eval.metrics import SampleScore, group_row, mean_iou, overall_iou, summarise
from eval.results import read_result
from utils import device as distributed
from utils.datasets import is_public, title
from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, json_value, read_bytes, refusing
from utils.files.writing import atomic_write
from utils.prepared import PreparedSplit
from utils.text import tokenize

FOLDER = Path(__file__).parent
SCRIPTS = ("charts.js", "gallery.js", "page.js")  # one script in this order
MAX_BYTES = 80_000_000  # of the file
MAX_LENGTH = 200  # characters of an expression that are shown
MAX_SAMPLES_BYTES = 256 * MEBIBYTE
SIZE_EDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of the image, between the rows by mask size
SIZES = ("0–1%", "1–2%", "2–5%", "5–10%", "10–20%", "20–50%", "50–100%")
BINS = 20  # of the histogram
FOUND = 0.5  # IoU from which an object counts as found
CHANGED = 0.05  # difference in IoU beyond which an expression counts as better or worse
MAX_WORDS = 500  # of the table by word; the rarest go first
OVERLAY, BEFORE = 7, 11  # places of the two overlays in a row of the gallery
ESCAPED = "<>&\u2028\u2029"  # characters that could end the block of JSON
IMAGE_SIDE, MASK_SIDE = 640, 320  # longer sides in the file, pixels
QUALITY, SMALL_QUALITY = 35, 90  # of WebP: a photograph of 640 x 480 takes about 29 kB, 39 kB in base64
MISSED, WRONG, RIGHT = (66, 133, 255), (255, 92, 53), (52, 211, 115)  # the page's legend has the same
COLOURS = np.array([(0, 0, 0, 0), (*MISSED, 255), (*WRONG, 255), (*RIGHT, 255)], np.uint8)
_REMEDY = "write it again with eval/evaluate.py"


class Shot(NamedTuple):
    """Of one expression, at MASK_SIDE: overlays as WebP, `before` of the other result (empty if it has no masks)."""

    image: str  # its name
    share: float  # of the image that the true mask covers
    object: int  # the same for expressions of one true mask, within their image
    found: dict  # the predicted mask as `run_lengths` gives it
    overlay: bytes
    before: bytes = b""


class Thumbnails:
    """`evaluate`'s on_sample: keeps the Shot of each expression, by index, and each image once, by name.

    Images are WebP; over them lie lossless WebPs of four colours: nothing, missed, wrong, right. PNG would take half as
    much again. `others`: predicted masks of the other result, by index, as run lengths.
    """

    def __init__(self, others: Mapping[int, dict] | None = None):
        self.others = others or {}
        self.shots: dict[int, Shot] = {}
        self.images: dict[str, bytes] = {}

    def __call__(self, prediction: Prediction) -> None:
        score, mask = prediction.score, prediction.mask
        if score.image_name not in self.images:
            size = fitted_size(*mask.shape, IMAGE_SIDE)
            image = Image.fromarray(prediction.image).resize(size, Image.Resampling.LANCZOS)
            quality = QUALITY if max(size) > MASK_SIDE else SMALL_QUALITY  # small ones are shown pixel by pixel
            self.images[score.image_name] = _webp(image, quality=quality, method=4)
        size = fitted_size(*mask.shape, MASK_SIDE)
        truth, found = _resized(mask, size), _resized(prediction.found, size)
        shot = Shot(
            *(score.image_name, float(mask.mean()), zlib.crc32(np.packbits(mask))),
            *(run_lengths(found), _overlay(truth, found)),
        )
        if score.index in self.others:
            before = _resized(from_run_lengths(self.others[score.index]), size)
            shot = shot._replace(before=_overlay(truth, before))
        self.shots[score.index] = shot

    def gather(self) -> None:
        """Take in those of all processes: a collective call."""
        self.shots = dict(distributed.gather(list(self.shots.items())))
        self.images = dict(distributed.gather(list(self.images.items())))


def fitted_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(width, height) of an image shrunk until no side is longer than `side`; it is never enlarged."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def run_lengths(mask: np.ndarray) -> dict:
    """`mask` (H x W bool) as COCO's uncompressed RLE: column by column, the first run outside of the object."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def from_run_lengths(rle: dict) -> np.ndarray:
    """The mask, H x W bool, of what `run_lengths` returns."""
    height, width = rle["size"]
    return np.repeat(np.arange(len(rle["counts"])) % 2 == 1, rle["counts"]).reshape(width, height).T


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels, of `size` (width, height), whose area is at least half in the mask (H x W bool)."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128


def _overlay(truth: np.ndarray, found: np.ndarray) -> bytes:
    return _webp(Image.fromarray(COLOURS[truth + 2 * found]), lossless=True, method=2)


def _webp(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()


class Other(NamedTuple):
    """The result that --against names: its metrics.json, its scores by index, and the masks that it has, by index."""

    metrics: dict
    scores: list[SampleScore]
    masks: Mapping[int, dict]


def read_other(path: Path, split: PreparedSplit) -> Other:
    """The metrics.json at `path` (or in that folder) and the samples.jsonl beside it.

    Raises InputError if they are damaged, a control, of other expressions than `split`, or of two different runs.
    """
    path = path / "metrics.json" if path.is_dir() else path
    result, beside = read_result(path), path.with_name("samples.jsonl")
    if result is None:
        raise InputError(f"--against {path}: is of a control, not a result; evaluate without --expressions")
    if result.of != (split.dataset, split.split) or result.metrics["n_samples"] != len(split):
        theirs = f"{' '.join(result.of)} with {result.metrics['n_samples']} expressions"
        raise InputError(f"--against {path}: is of {theirs}, not of {split.dataset} {split.split} with {len(split)}")
    lines = read_bytes(beside, MAX_SAMPLES_BYTES, "samples.jsonl", _REMEDY).splitlines()
    with refusing(beside, "samples.jsonl", _REMEDY):
        values = [json_value(line) for line in lines]
        found = enumerate(value.pop("mask", None) for value in values)  # written with --report
        masks = {index: _checked(mask) for index, mask in found if mask is not None}
        scores = [SampleScore(**value) for value in values]
        for index, score in enumerate(scores):
            kinds = ((type(getattr(score, field.name)), field.type) for field in fields(score))
            typed = all(kind in (get_args(declared) or [declared]) for kind, declared in kinds)
            pixels = 0, score.intersection, score.union, 2**53 - 1
            counted = typed and sorted(pixels) == [*pixels] and score.target <= score.union
            if not counted or not 0 <= (score.box_iou or 0) <= 1 or score.index != index:
                raise ValueError(f"line {index + 1} is not a score")
    if len(scores) != len(split) or any(score.sentence != split.text(i)[1] for i, score in enumerate(scores)):
        raise InputError(f"--against {beside}: is of other expressions than {split.folder}; {_REMEDY}")
    if abs(overall_iou(scores) - result.metrics["oIoU"]) > 1e-6:
        raise InputError(f"--against {path}: its oIoU is not that of the samples.jsonl beside it; {_REMEDY}")
    return Other(result.metrics, scores, masks)


def _checked(rle: dict) -> dict:
    """`rle` if `from_run_lengths` can take it, else ValueError, KeyError or TypeError."""
    (height, width), counts = rle["size"], rle["counts"]
    whole = all(type(n) is int and n >= 0 for n in (height, width, *counts))
    if not whole or not 0 < max(height, width) <= MASK_SIDE or sum(counts) != height * width:
        raise ValueError("not the run lengths of a mask")
    return rle


def write_report(
    path: Path, metrics: dict, scores: Sequence[SampleScore], thumbnails: Thumbnails, other: Other | None = None
) -> None:
    """Write the page of a split.

    Args: `metrics`, the content of metrics.json; `scores` of the whole split, by index; `thumbnails`, gathered.
    """
    numbers, shown = facts(metrics, scores, thumbnails, other), gallery(scores, thumbnails, other)
    room = MAX_BYTES - len(render(numbers, shown))
    add_thumbnails(shown, thumbnails, room, by_interest(scores, other.scores if other else None))
    page = render(numbers, shown)
    with atomic_write(path) as file:
        file.write(page)


def render(facts: dict, gallery: dict) -> bytes:
    """The page, UTF-8, of what `facts` and `gallery` return. Raises ValueError for NaN and infinity."""
    template, style, *scripts = ((FOLDER / name).read_text("utf-8") for name in ("page.html", "page.css", *SCRIPTS))
    script = f"(() => {{\n{''.join(scripts)}}})();\n"
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    policy += "; base-uri 'none'; form-action 'none'"
    parts = {
        "policy": policy,
        "title": escape(f"{facts['title']}: where does it fail?"),
        "style": style,
        "facts": encode(facts),
        "gallery": encode(gallery),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], template).encode()


def encode(value: Any) -> str:
    """`value` as JSON that can stand inside a script element: without <, > and &."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in ESCAPED:  # 80 MB: str.translate would take ten seconds
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _hash(source: str) -> str:
    """An inline style or script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def facts(metrics: dict, scores: Sequence[SampleScore], thumbnails: Thumbnails, other: Other | None) -> dict:
    """All numbers of the page but the gallery's.

    `title`; `other`, whether the expressions are others than the public split's; `control`, None for a result; `sides`,
    one for this result and one for the other (checkpoint, metrics, histogram, tables by length and size, record);
    `words`; `changes`, None without the other; `both_masks`, whether the other's are there.
    """
    shares = [thumbnails.shots[score.index].share for score in scores]
    sides = [(metrics, scores), *([other[:2]] if other else [])]
    return {
        "title": f"{title(metrics['dataset'])} {metrics['split']}",
        "other": not is_public(metrics["dataset"], metrics["split"], len(scores)),
        "control": metrics.get("control"),
        "sides": [_side(*side, shares, metrics["dataset"]) for side in sides],
        "words": by_word(scores, other.scores if other else None),
        "changes": changes(scores, other.scores) if other else None,
        "both_masks": bool(other and other.masks),
        "found": FOUND,
        "changed": CHANGED,
    }


def _side(metrics: dict, scores: Sequence[SampleScore], shares: Sequence[float], dataset: str) -> dict:
    """`record`: where the numbers come from, in words. A metrics.json from elsewhere may lack any of it."""
    numbers = summarise(scores, dataset, "generalised" in metrics)
    checkpoint, data = metrics["checkpoint"], metrics.get("data")
    file, step = Path(checkpoint["file"]), f", step {checkpoint['step']:,}" if checkpoint["step"] else ""
    record = {"checkpoint": checkpoint["file"], "sha256": checkpoint.get("sha256")}
    record["data"] = data.get("folder") if isinstance(data, dict) else None
    record["settings"] = ", ".join(f"{key} {value}" for key, value in metrics["settings"].items())
    record |= {key: metrics.get(key) for key in ("date", "code", "device", "command")}
    return numbers | {
        "checkpoint": one_line("/".join(filter(None, (file.parent.name, file.name))), 80) + step,
        "histogram": histogram(scores),
        "by_length": [{"label": label, **row} for label, row in numbers["by_length"].items()],  # JavaScript sorts keys
        "by_size": by_size(scores, shares),
        "record": {key: one_line(value, 400) for key, value in record.items() if value is not None},
    }


def histogram(scores: Iterable[SampleScore]) -> list[int]:
    """How many samples have an IoU in each of BINS equal steps from 0 to 1; the last includes 1."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, BINS * score.intersection // score.union) if score.union else BINS - 1] += 1
    return counts


def size_label(share: float) -> str:
    """The row by mask size for the `share` of the image, in [0, 1], that a true mask covers: "2–5%" for 0.03."""
    return SIZES[bisect_right(SIZE_EDGES, share)] if share else "none"


def by_size(scores: Sequence[SampleScore], shares: Sequence[float]) -> list[dict]:
    """Rows of {"label", "n", "oIoU", "mIoU"} by the `shares` of the image that the true masks cover, smallest first."""
    groups: dict[str, list[SampleScore]] = {label: [] for label in SIZES}
    for score, share in zip(scores, shares, strict=True):
        groups.setdefault(size_label(share), []).append(score)
    return [{"label": label, **group_row(members)} for label, members in groups.items()]


def by_word(scores: Sequence[SampleScore], others: Sequence[SampleScore] | None = None) -> list[dict]:
    """Rows as of `by_size` for words of enough expressions, lowest mIoU first; with `others` their mIoU "before"."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, score in enumerate(scores):
        for word in {token for token in tokenize(score.sentence) if token.isalnum() and len(token) <= 40}:
            groups[word].append(place)
    often = [word for word in groups if len(groups[word]) >= max(5, len(scores) // 500)]
    rows = []
    for word in sorted(often, key=lambda word: (-len(groups[word]), word))[:MAX_WORDS]:
        rows.append({"label": word, **group_row([scores[i] for i in groups[word]])})
        if others:
            rows[-1]["before"] = mean_iou([others[i] for i in groups[word]])
    return sorted(rows, key=lambda row: (row["mIoU"], row["label"]))


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
    """The gallery's data, without thumbnails yet: `names` and `images` by number, and a row for each expression.

    A row: [expression, name, number of the image, I, U, tokens, row by mask size, overlay, number of the object], with
    `other` also its I, U and overlay.
    """
    numbers = {name: i for i, name in enumerate(dict.fromkeys(score.image_name for score in scores))}
    rows, objects = [], {}
    for i, score in enumerate(scores):
        shot = thumbnails.shots[score.index]
        row = [one_line(score.sentence, MAX_LENGTH), score.name, numbers[score.image_name], score.intersection]
        row += [score.union, score.length, size_label(shot.share), ""]
        row.append(objects.setdefault((shot.image, shot.object), len(objects)))
        rows.append(row + [other.scores[i].intersection, other.scores[i].union, ""] if other else row)
    return {"names": list(numbers), "images": [""] * len(numbers), "rows": rows}


def add_thumbnails(shown: dict, thumbnails: Thumbnails, room: int, order: Iterable[int]) -> None:
    """Put overlays and images into `shown`, what `gallery` returns, as base64: in `order`, until `room` is full."""
    for i in order:
        row, shot = shown["rows"][i], thumbnails.shots[i]
        overlay, before = (base64.b64encode(webp).decode() for webp in (shot.overlay, shot.before))
        image = shown["images"][row[2]] or base64.b64encode(thumbnails.images[shot.image]).decode()
        room -= len(overlay) + len(before) + (0 if shown["images"][row[2]] else len(image))
        if room < 0:
            return
        row[OVERLAY], shown["images"][row[2]] = overlay, image
        if before:
            row[BEFORE] = before


def by_interest(scores: Sequence[SampleScore], others: Sequence[SampleScore] | None) -> list[int]:
    """Places of all scores, the most interesting first: the worst, the median and the best take turns.

    With `others`, so do those that lost and gained most.
    """
    order = sorted(range(len(scores)), key=lambda i: (scores[i].iou, i))
    middle = scores[order[len(order) // 2]].iou
    lists = [order, sorted(order, key=lambda i: abs(scores[i].iou - middle)), order[::-1]]
    if others:
        change = sorted(order, key=lambda i: scores[i].iou - others[i].iou)
        lists += [change, change[::-1]]
    return list(dict.fromkeys(i for turn in zip(*lists, strict=True) for i in turn))
