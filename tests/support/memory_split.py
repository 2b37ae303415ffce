"""A split that fits the toy model, for tests of evaluation: in memory, and as a folder of prepared data."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.small_model import SIZE, VOCABULARY
from utils.errors import InputError

WORDS = len(VOCABULARY)
IMAGE_SIZES = [(40, 61), (57, 33), (32, 48), (20, 25), (16, 90)]  # larger, smaller, equal; wide and tall
REFS = [(2, 1, 3), (1, 1), (2,), (1, 2), (1,)]  # expressions of each ref of each image


class MemorySplit:
    """What the evaluator uses of a PreparedSplit, from arrays made at random. The refs of an image are interleaved."""

    folder, split, dataset, meta = "unc_32x48_batch", "val", "unc", None

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in IMAGE_SIZES]
        self.masks, rows = {}, []
        for image, (size, refs) in enumerate(zip(IMAGE_SIZES, REFS, strict=True)):
            for ref, count in enumerate(refs):
                self.masks[f"{image}_{ref}"] = rng.random(size) < 0.3
                rows += [(image, f"{image}_{ref}", rng.integers(1, 6), rng.integers(1, WORDS, 20))] * count
        self.rows = [rows[i] for i in rng.permutation(len(rows))]

    @property
    def whole(self):
        return len(self)

    def __len__(self):
        return len(self.rows)

    def name(self, i):
        return f"unc_val_{i}"

    def text(self, i):
        image, _, length, ids = self.rows[i]
        ids = np.where(np.arange(20) < 20 - length, 0, 1 + (ids + i) % (WORDS - 1)).astype(np.int64)
        return ids, " ".join(f"w{word}" for word in ids[20 - length :]), f"image{image}"

    def ref(self, i):
        return self.rows[i][1]

    def image(self, i):
        return self.images[self.rows[i][0]]

    def mask(self, i):
        return self.masks[self.rows[i][1]]

    def sample(self, i):
        return self.image(i), self.mask(i)

    def broken(self, i, fault):
        return InputError(f"{self.name(i)}: {fault}")

    def image_groups(self):
        groups = {}
        for i, row in enumerate(self.rows):
            groups.setdefault(row[0], []).append(i)
        return list(groups.values())


COUNT = len(MemorySplit())


def write_folder(root: Path, size=SIZE) -> Path:
    """The folder that docs/PAPER.md describes, of a MemorySplit but for JPEG's losses; returns it."""
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
