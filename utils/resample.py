"""`skimage.transform.resize` at its defaults, for images and masks: equal bits in a fifth of the time.

Sizes are always (height, width). The half in torch, for evaluation, is in `models/inference.py`.

With its defaults skimage's function is a Gaussian filter (when shrinking) and a linear interpolation along each axis: a
product with one sparse non-negative matrix an axis, with a few "taps" a row.

Images. The products are done in float32 by BLAS. Their error has a bound, so every value farther than that from a tie
of the rounding is rounded as the original is. The others (0.4% of a photograph, 8% at 640 -> 480) are recomputed in
float64 from their neighbourhoods, by the original's operations in its order; if they are many, skimage does the image.

Masks. `resized > 0` holds where a set pixel lies under a tap: the products count set pixels, which is exact. For a few
sizes, with taps so small that float32 may lose a product of two, skimage does the mask.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLOCK = 16  # output rows in a dense block: many enough for BLAS, few enough to hold few zeros
FLOAT32_ROUNDING = 2.0**-24
CHUNK = 4096  # values near a tie at once, so that they stay in the cache
SAFE_WEIGHT = 1e-18  # float32 still holds the product of two such weights
MAX_GATHERED = 4_000_000  # pixels read for values near a tie, beyond which skimage itself is cheaper


class Axis(NamedTuple):
    """One axis of a resize from n inputs to m outputs: output i = sum over t of weight[i, t] * input[index[i, t]]."""

    radius: int  # r, of the Gaussian kernel
    kernel: np.ndarray  # 2 r + 1, float64
    fraction: np.ndarray  # m: where output i lies between two filtered inputs
    index: np.ndarray  # m x (2 r + 2)
    weight: np.ndarray  # m x (2 r + 2), float64


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 H x W x C -> uint8 `size` x C, equal to `img_as_ubyte(skimage.transform.resize(image, size))`."""
    if image.shape[:2] == size:
        return image.copy()
    rows, columns = axis(image.shape[0], size[0]), axis(image.shape[1], size[1])
    distance = _products(image, size)
    result = np.rint(distance)
    distance -= result
    margin = 2 * 255 * FLOAT32_ROUNDING * (rows.index.shape[1] + columns.index.shape[1] + 8)
    unsure = np.flatnonzero(np.abs(distance, out=distance) > 0.5 - margin)
    if len(unsure) * rows.index.shape[1] * columns.index.shape[1] > MAX_GATHERED:
        from skimage import img_as_ubyte
        from skimage.transform import resize

        return img_as_ubyte(resize(image, size))
    result = result.astype(np.uint8)
    for first in range(0, len(unsure), CHUNK):
        some = unsure[first : first + CHUNK]
        result.reshape(-1)[some] = _exact_values(image, rows, columns, some)
    return result


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool H x W -> bool `size`, equal to `skimage.transform.resize(mask.astype(float32), size) > 0`."""
    if mask.shape == size:
        return mask.copy()
    weights = [axis(n, m).weight for n, m in zip(mask.shape, size, strict=True)]
    if any(((weight > 0) & (weight < SAFE_WEIGHT)).any() for weight in weights):
        from skimage.transform import resize

        return resize(mask.astype(np.float32), size) > 0
    return _products(mask[..., None], size, counting=True)[..., 0] > 0.5


@lru_cache(maxsize=512)
def axis(n: int, m: int) -> Axis:
    """The taps of a resize from n to m pixels: skimage's Gaussian (cut at 4 sigma), linear weights, mirrored edges."""
    sigma = max(0.0, (n / m - 1) / 2)
    radius = int(4.0 * sigma + 0.5)
    kernel = np.ones(1)
    if radius:
        kernel = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
        kernel /= kernel.sum()
    place = np.abs((np.arange(m) + 0.5) * (n / m) - 0.5) if n > 1 else np.zeros(m)  # abs: mirrored at 0
    start = np.floor(place)
    fraction = place - start
    left, right = np.zeros((2, m, 2 * radius + 2))
    left[:, :-1], right[:, 1:] = kernel, kernel
    weight = left * (1 - fraction)[:, None] + right * fraction[:, None]  # m 2r+2
    period = max(1, 2 * n - 2)  # of indices mirrored at the first and the last input
    index = (start.astype(np.intp)[:, None] + np.arange(-radius, radius + 2)) % period  # m 2r+2
    return Axis(radius, kernel, fraction, np.minimum(index, period - index), weight)


@lru_cache(maxsize=512)
def _blocks(n: int, m: int, channels: int, counting: bool) -> list[tuple[slice, slice, np.ndarray]]:
    """The axis's matrix as dense float32 blocks (outputs, inputs, weights), each repeated for interleaved `channels`.

    counting: 1 in place of each weight.
    """
    taps = axis(n, m)
    weight = (taps.weight > 0).astype(float) if counting else taps.weight
    blocks = []
    for first in range(0, m, BLOCK):
        last = min(first + BLOCK, m)
        index = taps.index[first:last]
        low, high = int(index.min()), int(index.max()) + 1
        matrix = np.zeros((last - first, high - low))
        np.add.at(matrix, (np.arange(last - first)[:, None], index - low), weight[first:last])
        matrix = np.kron(matrix, np.eye(channels)).astype(np.float32)
        blocks.append((slice(first * channels, last * channels), slice(low * channels, high * channels), matrix))
    return blocks


def _products(image: np.ndarray, size: tuple[int, int], counting: bool = False) -> np.ndarray:
    """H x W x C times the two axes' matrices (see `_blocks`) -> float32 `size` x C."""
    height, width, channels = image.shape
    image = np.ascontiguousarray(image).reshape(height, width * channels)
    middle = np.empty((size[0], width * channels), np.float32)
    for outputs, inputs, matrix in _blocks(height, size[0], 1, counting):
        np.matmul(matrix, image[inputs].astype(np.float32), out=middle[outputs])
    result = np.empty((size[0], size[1] * channels), np.float32)
    for outputs, inputs, matrix in _blocks(width, size[1], channels, counting):
        np.matmul(middle[:, inputs], matrix.T, out=result[:, outputs])
    return result.reshape(*size, channels)


def _exact_values(image: np.ndarray, rows: Axis, columns: Axis, where: np.ndarray) -> np.ndarray:
    """The uint8 values of skimage's resize at the flat output indices `where` (K), by its operations in its order.

    SciPy filters rows first, summing the centre tap, then the pairs from the outermost inwards; then it interpolates.
    """
    size = len(rows.fraction), len(columns.fraction), image.shape[2]
    row, column, channel = np.unravel_index(where, size)
    width, channels = image.shape[1:]
    row_start = rows.index.T[:, row] * (width * channels)  # 2r+2 K
    along_row = columns.index.T[:, column] * channels + channel  # 2r'+2 K
    patches = np.take(image, row_start[:, None] + along_row)  # 2r+2 2r'+2 K
    patches = np.multiply(patches, 1.0 / 255, dtype=np.float64)
    corners = _smooth(_smooth(patches, rows).swapaxes(0, 1), columns).swapaxes(0, 1)  # 2 2 K
    total = np.zeros(len(where))
    down, across = ((1.0 - f, 1.0 - (1.0 - f)) for f in (rows.fraction[row], columns.fraction[column]))
    for y, x in np.ndindex(2, 2):
        total += corners[y, x] * down[y] * across[x]
    return np.rint(total * 255.0).astype(np.uint8)


def _smooth(patches: np.ndarray, taps: Axis) -> np.ndarray:
    """The Gaussian filter at the two middle places of the first axis: float64 2r+2 ... -> 2 ..."""
    r, kernel = taps.radius, taps.kernel
    total = patches[r : r + 2] * kernel[r]
    for k in range(r, 0, -1):
        total += (patches[r - k : r - k + 2] + patches[r + k : r + k + 2]) * kernel[r - k]
    return total
