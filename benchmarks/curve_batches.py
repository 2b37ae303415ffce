"""The batches that the curves in tests/data/ were made of; the stored outputs are those of batch 0."""

import numpy as np


def batch(step: int, size: int = 96, words: int = 40, samples: int = 4):
    """Step s -> (image uint8 4 x 3 x size x size, mask bool 4 x 1 x size x size, ids int64 4 x 20).

    A bright square is the object; the first token says in which quadrant it is. RandomState is stable over NumPy's
    versions.
    """
    r = np.random.RandomState(1000 + step)
    image = r.randint(0, 256, (samples, 3, size, size)).astype(np.float32)
    mask = np.zeros((samples, 1, size, size), np.float32)
    ids = np.zeros((samples, 20), np.int64)
    for b in range(samples):
        q = r.randint(4)
        y, x = (q // 2) * (size // 2) + r.randint(0, size // 6), (q % 2) * (size // 2) + r.randint(0, size // 6)
        side = r.randint(size // 8, size // 3)
        image[b, :, y : y + side, x : x + side] = 255 - 20 * q
        mask[b, 0, y : y + side, x : x + side] = 1
        n = r.randint(2, 20)
        ids[b, 20 - n :] = r.randint(4, words, n)
        ids[b, 20 - n] = 4 + q
    return image.astype(np.uint8), mask > 0, ids
