"""A split in memory that fits the toy model, for tests of evaluation."""

import numpy as np

from tests.support.small_model import SIZE, VOCABULARY, tiny_model  # noqa: F401
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
