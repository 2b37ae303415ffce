"""Prepared data that fit the toy model, written by hand as docs/PAPER.md describes the format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.memory_split import MemorySplit
from tests.support.small_model import SIZE, VOCABULARY, write_checkpoint  # noqa: F401

COUNT = len(MemorySplit())


def write_folder(root: Path, size=SIZE) -> Path:
    """A compact folder of prepared data of a MemorySplit, but for JPEG's losses; returns it."""
    split, folder = MemorySplit(), root / f"unc_{size[0]}x{size[1]}_batch"
    for kind in ("batch", "image", "label"):
        (folder / f"val_{kind}").mkdir(parents=True)
    for i in range(COUNT):
        ids, _, image = split.text(i)
        expression = " ".join(VOCABULARY.words[max(4, word)] for word in ids if word)  # none of the special words
        files = {"image_file": f"{image}.jpg", "label_file": f"{split.ref(i)}.png"}
        Image.fromarray(split.image(i)).save(folder / "val_image" / files["image_file"])
        Image.fromarray(split.mask(i)).save(folder / "val_label" / files["label_file"])
        texts = {"text_batch": VOCABULARY.ids(expression), "sent_batch": [expression], "im_name_batch": image}
        np.savez(folder / f"val_batch/{split.name(i)}.npz", **texts, **files)
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in VOCABULARY.words))
    words = {"file": "vocabulary.txt", "source": "unc", "size": len(VOCABULARY), "sha256": VOCABULARY.sha256}
    counts = {"refs": len(split.masks), "expressions": COUNT, "images": len(split.images), "complete": True}
    meta = {"format": "restr-batches", "version": 1, "dataset": "unc", "image_size": list(size), "text_length": 20}
    meta |= {"vocabulary": words, "self_contained": False, "splits": {"val": counts}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder
