"""tools/demo_report.py: which expressions docs/demo.jpg shows, and what of their images is dark."""

import json

import numpy as np
from PIL import Image

from models import load_restr
from models.inference import segment
from tests.support.small_model import write_checkpoint
from tools.demo_report import IMAGES, examples

# Size, intersection of 100, expression. Of each kind the best-found one in landscape format that is not taken yet.
SAMPLES = {
    "tall": ((48, 64), 99, "red square"),
    "worse": ((64, 48), 60, "the red square"),
    "square": ((64, 48), 70, "blue square"),
    "ring": ((64, 48), 80, "the big white ring at the top"),
    "taken": ((64, 48), 50, "green ring at the top"),
    "right": ((64, 32), 40, "red star right of the blue ring"),
}


def test_the_examples_are_the_best_of_their_kinds(tmp_path):
    write_checkpoint(tmp_path / "weights/demo/best.pth")
    (tmp_path / IMAGES).mkdir(parents=True)
    (tmp_path / "results/val").mkdir(parents=True)
    lines = []
    for name, (size, found, sentence) in SAMPLES.items():
        noise = np.random.default_rng(len(lines)).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / IMAGES / f"{name}.jpg")
        sample = {"image_name": name, "sentence": sentence, "intersection": found, "union": 100}
        lines.append(json.dumps(sample) + "\n")
    (tmp_path / "results/val/samples.jsonl").write_text("".join(lines))
    shown = dict(examples(tmp_path))
    assert list(shown) == [SAMPLES[name][2] for name in ("square", "ring", "taken", "right")]
    assert [picture.shape for picture in shown.values()] == [(192, 256, 3)] * 3 + [(128, 256, 3)]
    model, picture = load_restr(tmp_path / "weights/demo", "cpu"), shown["blue square"]
    with Image.open(tmp_path / IMAGES / "square.jpg") as image:
        mask = segment(model, image, "blue square").mask
        plain = np.asarray(image.resize((256, 192), Image.Resampling.BICUBIC))
    dark = (picture == plain // 2).all(-1)
    assert abs(dark.mean() - (1 - mask.mean())) < 0.1 and 0.05 < mask.mean() < 0.95
