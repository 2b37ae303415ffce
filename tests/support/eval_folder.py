"""Prepared data that fit the toy model, written by hand as docs/PAPER.md describes the format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.small_model import SIZE, VOCABULARY, write_checkpoint  # noqa: F401

REFS = ((0, 3), (0, 1), (1, 2), (2, 1), (2, 1), (3, 2))  # (image, expressions)
COUNT = sum(count for _, count in REFS)


def write_folder(root: Path, split: str = "val", dataset: str = "unc", size=SIZE) -> Path:
    """A compact folder of prepared data of four noise images; returns it."""
    rng = np.random.default_rng(1)
    folder = root / f"{dataset}_{size[0]}x{size[1]}_batch"
    batches, images, labels = (folder / f"{split}_{kind}" for kind in ("batch", "image", "label"))
    for path in (batches, images, labels):
        path.mkdir(parents=True)
    sizes = [(37, 50), (60, 45), (32, 48), (25, 30)]
    for number, (height, width) in enumerate(sizes):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        noise.save(images / f"COCO_train2014_{number:012d}.jpg")
    number = 0
    for ref, (image, expressions) in enumerate(REFS):
        Image.fromarray(rng.random(sizes[image]) < 0.4).save(labels / f"{ref}.png")
        for _ in range(expressions):
            expression = " ".join(rng.choice(VOCABULARY.words[4:], rng.integers(1, 7)))
            name = f"COCO_train2014_{image:012d}"
            np.savez(
                batches / f"{dataset}_{split}_{number}.npz",
                text_batch=VOCABULARY.ids(expression),
                sent_batch=np.array([expression]),
                im_name_batch=np.array(name),
                image_file=np.array(f"{name}.jpg"),
                label_file=np.array(f"{ref}.png"),
            )
            number += 1
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in VOCABULARY.words))
    words = {"file": "vocabulary.txt", "source": "unc", "size": len(VOCABULARY), "sha256": VOCABULARY.sha256}
    counts = {"refs": len(REFS), "expressions": number, "images": len(sizes), "complete": True}
    meta = {"format": "restr-batches", "version": 1, "dataset": dataset, "image_size": list(size), "text_length": 20}
    meta |= {"vocabulary": words, "self_contained": False, "splits": {split: counts}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder
