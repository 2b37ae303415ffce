"""Resizing held to scikit-image bit for bit; fitting and cropping to slow plain forms and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import img_as_ubyte
from skimage.transform import resize

from models.inference import resize_and_crop, resize_and_pad
from utils import resample
from utils.geometry import fit_inside, pad
from utils.resample import resize_image, resize_mask

SHAPES = [  # from, to
    ((120, 160), (90, 120)),  # 4:3, where a third of the columns lies halfway between two pixels
    ((60, 80), (90, 120)),  # larger: exact quarters, so ties
    ((400, 300), (20, 15)),  # a Gaussian of many taps
    ((160, 107), (120, 80)), ((83, 125), (80, 120)), ((120, 119), (120, 119)), ((121, 161), (90, 120)),
    ((25, 19), (120, 90)), ((7, 3), (48, 21)), ((1, 1), (48, 48)), ((1, 9), (5, 48)), ((9, 1), (48, 5)),
    ((2, 2), (1, 1)), ((3, 2), (2, 3)), ((2500, 2), (240, 1)), ((2, 2500), (1, 240)), ((240, 240), (120, 120)),
    ((360, 360), (120, 120)), ((200, 150), (120, 90)), ((31, 17), (13, 29)),
]  # fmt: skip


def by_skimage(mask, size):
    return resize(mask.astype(np.float32), size) > 0


def pictures(shape):
    rng = np.random.default_rng(sum(shape))
    height, width = shape
    yield rng.integers(0, 256, (height, width, 3))
    yield np.full((height, width, 3), 77)
    yield np.broadcast_to((np.arange(width) // 3 % 256)[None, :, None], (height, width, 3))
    yield np.broadcast_to((np.arange(height) * 2 % 256)[:, None, None], (height, width, 3))
    yield np.add.outer(np.arange(height), np.arange(width))[..., None] // np.array([1, 4, 9]) % 256
    yield rng.integers(0, 2, (height, width, 3)) * 255


def masks(shape):
    rng = np.random.default_rng(sum(shape))
    for share in (0, 0.002, 0.05, 0.5, 1):
        yield rng.random(shape) < share
    thin = np.zeros(shape, bool)
    thin[shape[0] // 2] = True
    yield thin
    single = np.zeros(shape, bool)
    single[-1, -1] = True
    yield single


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_images_and_masks_equal_skimage(shape, size):
    for picture in pictures(shape):
        image = picture.astype(np.uint8)
        assert np.array_equal(resize_image(image, size), img_as_ubyte(resize(image, size)))
    for mask in masks(shape):
        found = resize_mask(mask, size)
        assert found.dtype == bool and np.array_equal(found, by_skimage(mask, size))


def test_random_sizes_equal_skimage():
    rng = np.random.default_rng(5)
    for _ in range(150):
        shape, size = (tuple(int(n) for n in rng.integers(1, 70, 2)) for _ in range(2))
        image = (rng.integers(0, 256, (*shape, 3)) // rng.choice([1, 16, 100])).astype(np.uint8)
        assert np.array_equal(resize_image(image, size), img_as_ubyte(resize(image, size))), (shape, size)
        mask = rng.random(shape) < rng.choice([0.02, 0.3])
        assert np.array_equal(resize_mask(mask, size), by_skimage(mask, size)), (shape, size)


def test_many_ties_are_left_to_skimage(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    monkeypatch.setattr(resample, "MAX_GATHERED", 0)
    monkeypatch.setattr("skimage.transform.resize", lambda image, size: np.full((*size, 3), 7, np.uint8))
    assert (resize_image(image, (60, 80)) == 7).all()


@pytest.mark.parametrize(("n", "m"), [(15, 11), (18, 14), (30, 22), (47, 35)])
def test_masks_where_float32_loses_a_weight(n, m, monkeypatch):
    """Output coordinates rounded to just beside a pixel have taps of 1e-16 times a Gaussian's end."""
    weight = resample.axis(n, m).weight
    assert ((weight > 0) & (weight < resample.SAFE_WEIGHT)).any()
    for row, column in np.ndindex(n, n):
        mask = np.zeros((n, n), bool)
        mask[row, column] = True
        assert np.array_equal(resize_mask(mask, (m, m)), by_skimage(mask, (m, m)))


@pytest.mark.parametrize(
    ("image", "canvas", "size", "corner"),
    [
        ((480, 640), (480, 480), (360, 480), (60, 0)),
        ((333, 500), (480, 480), (320, 480), (80, 0)),  # 319.68 -> 320
        ((5, 16), (8, 8), (2, 8), (3, 0)),  # 2.5 rounds to the even 2
        ((100, 100), (480, 640), (480, 480), (0, 80)),
        ((50, 40), (24, 31), (24, 19), (0, 6)),
        ((1, 5000), (480, 480), (1, 480), (239, 0)),
    ],
)
def test_an_image_is_fitted_and_centred(image, canvas, size, corner):
    window = tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))
    assert fit_inside(*image, canvas) == (size, window)
    small = np.random.default_rng(3).integers(1, 256, (*size, 3), dtype=np.uint8)
    for array in (small, small[..., 0] > 99):
        padded = pad(array, canvas)
        assert padded.shape[:2] == canvas and padded.dtype == array.dtype and padded.flags.c_contiguous
        assert np.array_equal(padded[window], array) and padded.sum() == array.sum()


def plain_bilinear(array, size):
    """float64 H x W at half-pixel centres, without anti-aliasing, one output at a time."""
    result = np.empty(size)
    for out in np.ndindex(size):
        result[out] = 0
        place = [min(max((k + 0.5) * n / m - 0.5, 0), n - 1) for k, n, m in zip(out, array.shape, size, strict=True)]
        low = [min(int(p), n - 2) if n > 1 else 0 for p, n in zip(place, array.shape, strict=True)]
        for corner in np.ndindex(2, 2):
            at = [min(a + c, n - 1) for a, c, n in zip(low, corner, array.shape, strict=True)]
            shares = [1 - abs(a + c - p) for a, c, p in zip(low, corner, place, strict=True)]
            result[out] += shares[0] * shares[1] * array[at[0], at[1]] * (array.shape[0] > 1 or corner[0] == 0)
    return result


@pytest.mark.parametrize(("shape", "size"), [((20, 33), (16, 16)), ((9, 7), (16, 24)), ((16, 16), (16, 16))])
def test_resize_and_pad_is_plain_bilinear(shape, size):
    image = torch.rand((1, 3, *shape), generator=torch.Generator().manual_seed(0))
    fit = fit_inside(*shape, size)
    fill = torch.tensor([-1.0, 2.0, 0.5]).view(3, 1, 1)
    canvas = resize_and_pad(image, size, fill=fill)
    assert canvas.shape == (1, 3, *size)
    inside = canvas[0, :, *fit.window].numpy()
    for channel in range(3):
        expected = plain_bilinear(image[0, channel].double().numpy(), fit.size)
        assert np.abs(inside[channel] - expected).max() < 1e-6
        outside = canvas[0, channel].clone()
        outside[fit.window] = fill[channel]
        assert (outside == fill[channel]).all()
    assert resize_and_pad(image, size).sum() == pytest.approx(inside.sum(), rel=1e-5)  # by default filled with 0


def test_resize_and_pad_antialiased_is_pillows():
    image = torch.rand((1, 1, 60, 90), generator=torch.Generator().manual_seed(1))
    canvas = resize_and_pad(image, (24, 24), antialias=True)
    expected = Image.fromarray(image[0, 0].numpy()).resize((24, 16), Image.Resampling.BILINEAR)
    assert np.abs(canvas[0, 0, 4:20].numpy() - np.asarray(expected)).max() < 1e-5
    assert np.abs(resize_and_pad(image, (24, 24))[0, 0, 4:20].numpy() - np.asarray(expected)).max() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(20, 33), (48, 31), (9, 7), (16, 24), (1, 40)])
def test_resize_and_crop_is_plain_bilinear(height, width):
    """As in the evaluation protocol: scale max(H/S, W/S), sides rounded, the centre cut out, offsets rounded down."""
    size = (16, 24)
    logits = torch.randn((2, 1, *size), generator=torch.Generator().manual_seed(2))
    found = resize_and_crop(logits, height, width)
    assert found.shape == (2, 1, height, width)
    scale = max(height / 16, width / 24)
    full = int(np.round(16 * scale)), int(np.round(24 * scale))
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    for number in range(2):
        expected = plain_bilinear(logits[number, 0].double().numpy(), full)[top : top + height, left : left + width]
        assert np.abs(found[number, 0].numpy() - expected).max() < 1e-5


def test_crop_fits_every_size():
    logits = torch.zeros(1, 1, 24, 24)
    for height in range(1, 70, 3):
        for width in range(1, 70, 2):
            assert resize_and_crop(logits, height, width).shape == (1, 1, height, width)
