"""Made-up results of a split with hostile and plain expressions, and how to read a report back, for its tests."""

import json
import re
from pathlib import Path

import numpy as np

from eval.evaluator import Prediction
from eval.metrics import SampleScore, overall_iou, summarise
from eval.report.write import Other, Thumbnails

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'> man",
    "<!--<script> left",
    "\u202egnirts desrever\u202c \u200f",
    "bell \x07 and zero \x00 and line \u2028 \n end",
    "quote \"' &lt;b&gt; &amp; ${window.hacked = 4} \\",
    "{{script}} {{facts}}",
    "__proto__ constructor",
    "איש משמאל",
)
WORDS = ("man", "woman", "left", "right", "red", "shirt")


def predictions(count: int, seed: int = 0) -> list[Prediction]:
    """`count` expressions of a third as many noise images with masks of all sizes; HOSTILE first. Logits are +-1.

    The first and the last of an image's three expressions are of one object.
    """
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        drawn = np.random.default_rng(1000 + index // 3)
        height, width = drawn.integers(20, 90, 2)
        image = drawn.integers(0, 256, (height, width, 3), dtype=np.uint8)
        words = np.random.default_rng(index).choice(WORDS, 1 + index % 5, replace=False)
        sentence = HOSTILE[index] if index < len(HOSTILE) else " ".join(words)
        ref = index - 2 if index % 3 == 2 else index
        mask = np.random.default_rng(ref).random((height, width)) < (0.003, 0.03, 0.15, 0.4, 0.8)[ref % 5]
        if index == 16:
            mask[:] = False
        found = np.where(rng.random((height, width)) < rng.random() ** 2, rng.random((height, width)) < 0.5, mask)
        score = SampleScore(
            *(index, f"unc_val_{index}", int((found & mask).sum()), int((found | mask).sum())),
            *(len(sentence.split()), sentence, f"COCO_{index // 3}", int(mask.sum())),
        )
        made.append(Prediction(score, image, mask, np.where(found, 1, -1).astype(np.float32), found))
    return made


def thumbnails_of(made: list[Prediction], other: Other | None = None) -> Thumbnails:
    thumbnails = Thumbnails(other.masks if other else None)
    for prediction in made:
        thumbnails(prediction)
    return thumbnails


def metrics_of(scores: list[SampleScore], file: str = "weights/new/best.pth") -> dict:
    """As evaluate.py records them."""
    settings = {"threshold": 1e-9, "pad": "grey", "antialias": False, "batch_size": 8, "amp": None}
    record = {"dataset": "unc", "split": "val", "settings": settings, "data": {"folder": "data/<b>unc"}}
    return summarise(scores, "unc") | record | {"checkpoint": {"file": file, "sha256": "0" * 64, "step": 5000}}


def other_of(made: list[Prediction], masks: bool = True) -> Other:
    scores, shots = [prediction.score for prediction in made], thumbnails_of(made).shots
    found = {index: shot.found for index, shot in shots.items()} if masks else {}
    return Other(metrics_of(scores, "weights/<i>old/best.pth"), scores, found)


def data_of(path: Path) -> tuple[dict, dict]:
    """Facts and gallery of a report."""
    page = path.read_text()
    blocks = [
        re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
        for name in ("facts", "rows")
    ]
    return tuple(json.loads(block[1]) for block in blocks)


def write_result(folder: Path, scores: list[SampleScore], **changed) -> Path:
    """metrics.json and samples.jsonl as evaluate.py writes them, of version 1.0 without boxes; returns the former."""
    folder.mkdir(parents=True)
    lines = [json.dumps({key: value for key, value in vars(score).items() if value is not None}) for score in scores]
    (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps(metrics_of(scores) | {"oIoU": overall_iou(scores)} | changed))
    return folder / "metrics.json"
