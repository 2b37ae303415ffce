"""Masks from polygons, RLE and .mat files, against slow plain forms, and what is refused of them."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from prepare.masks import checked_segmentation, checked_size, draw, read_mat, read_mat_mask
from prepare.ref import left_out_polygons
from tests.support.hostile import FUZZ, refused, survives, write

SIZE = (20, 30)


def mask_of(value, size=SIZE) -> np.ndarray:
    mask = draw(checked_segmentation(value, size, "ref 3"), size)
    assert mask.dtype == bool and mask.shape == size
    return mask


def rectangle(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def plain_run_lengths(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel, down the columns, as the COCO format is described."""
    mask, place = np.zeros(size, bool), 0
    for turn, count in enumerate(counts):
        for _ in range(count):
            mask[place % size[0], place // size[0]] = turn % 2
            place += 1
    return mask


def test_polygons_are_united():
    parts = [(2, 3, 10, 8), (5, 6, 12, 20), (15, 25, 18, 29)]
    expected = np.zeros(SIZE, bool)
    for top, left, bottom, right in parts:
        expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(mask_of([rectangle(*part) for part in parts]), expected)


@pytest.mark.parametrize("flat", [[3, 4, 20, 15], [3, 4], []])
def test_polygons_without_area_are_left_out_beside_others(flat):
    good = [rectangle(2, 3, 10, 8), rectangle(5, 6, 12, 20)]
    for polygons in ([good[0], flat, good[1]], [flat, *good]):
        kept = checked_segmentation(polygons, SIZE, "ref 3")
        assert kept == good and left_out_polygons(polygons, kept) == 1
    if flat:  # as COCO's own code draws them
        theirs = coco.decode(coco.merge(coco.frPyObjects([good[0], flat, good[1]], *SIZE)))
        np.testing.assert_array_equal(mask_of([good[0], flat, good[1]]), theirs.astype(bool))
    assert "a polygon has" in refused(checked_segmentation, [flat, flat], SIZE, "ref 3")


def test_polygons_are_near_what_skimage_draws():
    from skimage.draw import polygon2mask

    random = np.random.default_rng(5)
    for _ in range(20):
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        points = np.stack([60 + 50 * np.cos(angles), 90 + 70 * np.sin(angles)], 1)  # rows, columns
        points *= random.uniform(0.8, 1.2)
        theirs = polygon2mask((120, 180), points)
        ours = mask_of([points[:, ::-1].ravel().tolist()], (120, 180))
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95


@FUZZ
@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=12))
def test_run_lengths_of_both_forms(height, counts):
    counts.append(-sum(counts) % height or height)  # to whole columns
    size = height, sum(counts) // height
    expected = plain_run_lengths(counts, size)
    packed = coco.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"].decode()
    for form in (packed, counts):
        np.testing.assert_array_equal(mask_of({"size": list(size), "counts": form}, size), expected)


def test_long_compressed_run_lengths():
    mask = np.random.default_rng(2).random((400, 300)) > np.linspace(0, 1, 300)
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(mask_of({"size": [400, 300], "counts": packed}, mask.shape), mask)


def test_outside_and_empty_objects_have_no_pixels():
    assert not mask_of([rectangle(21, 31, 25, 40)]).any()
    assert not mask_of([[5, 5, 5, 5, 5, 5]]).any()
    assert not mask_of({"size": list(SIZE), "counts": [600]}).any()
    assert mask_of([rectangle(-5, -5, 25, 35)]).all()
    assert checked_segmentation([[0, 0, 20, 20] * 50_000], SIZE, "ref 3")  # the longest outline


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value",
    [
        None, 3, "x", [], [[]], [3], {}, [None], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, True]], [[1, 2, 3, 4, 5, NAN]], [[1, 2, 3, 4, 5, INFINITY]], [[1, 2, 3, 4, 5, 10**400]],
        [[1, 2, 3, 4, 5, 1e12]], [[1, 2, 3, 4, 5, 50]], [[1, 2, 3, 4, -40, 5]], [[[1, 2], [3, 4], [5, 6]]],
        [[0, 0, 1, 1, 2, 2]] * 5_001, [[0, 0, 20, 20] * 50_000, [0, 0, 1, 1, 0, 0]],
        {"size": [20, 30]}, {"counts": [600]}, {"size": [30, 20], "counts": [600]}, {"size": "20", "counts": [600]},
        {"size": [20, 30], "counts": [599]}, {"size": [20, 30], "counts": [700, -100]},
        {"size": [20, 30], "counts": [600.0]}, {"size": [20, 30], "counts": [[600]]}, {"size": [20, 30], "counts": 600},
        {"size": [20, 30], "counts": [10**30]}, {"size": [20, 30], "counts": ""}, {"size": [20, 30], "counts": "o"},
        {"size": [20, 30], "counts": "é\n"}, {"size": [20, 30], "counts": "o" * 100}, {"size": [20, 30], "counts": "A"},
        {"size": [20, 30], "counts": "0" * 1_000_001}, {"size": [20, 30], "counts": {"a": 1}},
    ],
)  # fmt: skip
def test_broken_segmentations_are_refused(value):
    assert refused(checked_segmentation, value, SIZE, "ref 3").startswith("ref 3: ")


@FUZZ
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_compressed_text_is_decoded_or_refused(text):
    survives(mask_of, {"size": list(SIZE), "counts": text})


@pytest.mark.parametrize(
    "size",
    [(0, 5), (5, -1), (20_001, 1), (10_000, 10_000), (5.5, 5), (None, 5), ("5e0", 5), (True, 5)]
    + [(float("nan"), 5), (float("inf"), 5), ("-5", 5), ([5], 5)],
)
def test_impossible_sizes_are_refused(size):
    assert refused(checked_size, *size, "ref 3").startswith("ref 3: ")


def mat(variables: dict, **options) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
@pytest.mark.parametrize("options", [{}, {"do_compression": True}])
def test_mat_masks_are_where_the_variable_is_0(tmp_path, dtype, options):
    image = np.random.default_rng(4).integers(-1 if dtype != "uint8" else 0, 2, (7, 5)).astype(dtype)
    path = write(tmp_path / "1_1.mat", mat({"other": np.zeros((2, 2)), "segimg_t": image}, **options))
    mask = read_mat_mask(path)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, image == 0)


def test_other_mat_files_are_refused(tmp_path):
    path = tmp_path / "1_1.mat"
    assert "1_1.mat: no such file" in refused(read_mat_mask, path)
    text, cell = np.array(["abc"]), np.array([[1, "x"]], object)
    for value in (np.zeros((2, 2, 2)), text, cell, {"a": np.zeros((2, 2))}, np.zeros((0, 4)), np.zeros((1, 20_001))):
        assert "1_1.mat: " in refused(read_mat_mask, write(path, mat({"segimg_t": value})))
    assert "it holds no segimg_t" in refused(read_mat_mask, write(path, mat({"x": np.zeros((2, 2))})))
    refused(read_mat_mask, write(path, mat({"segimg_t": np.zeros((3, 3))}, format="4")))
    whole = mat({"segimg_t": np.ones((40, 40))}, do_compression=True)
    for data in (b"", b"x" * 200, whole[:150], whole[:-5]):
        refused(read_mat_mask, write(path, data))


MAT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def mat_by_hand(order: str, kind: int, shape: tuple, values: bytes, flags=9, count=None, packed=False) -> bytes:
    """A file of version 5 as its description says, in either byte order; `count`: of the values' bytes, as claimed."""

    def part(number: int, content: bytes, claimed: int | None = None) -> bytes:
        padding = bytes(-len(content) % 8)
        return struct.pack(f"{order}2I", number, len(content) if claimed is None else claimed) + content + padding

    body = part(6, struct.pack(f"{order}2I", flags, 0)) + part(5, struct.pack(f"{order}2i", *shape))
    element = part(14, body + part(1, b"segimg_t") + part(kind, values, count))
    if packed:
        deflated = zlib.compress(element)
        element = struct.pack(f"{order}2I", 15, len(deflated)) + deflated
    return b"MATLAB 5.0".ljust(124) + (b"\x00\x01IM" if order == "<" else b"\x01\x00MI") + element


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
def test_mat_files_of_either_byte_order_and_every_type(tmp_path, order, packed):
    image = np.random.default_rng(4).integers(0, 3, (37, 23))
    for kind, dtype in MAT_TYPES.items():
        data = mat_by_hand(order, kind, (37, 23), image.astype(order + dtype).tobytes("F"), packed=packed)
        np.testing.assert_array_equal(read_mat(write(tmp_path / "1.mat", data), "segimg_t", ""), image)


@pytest.mark.parametrize(
    ("kind", "shape", "flags", "count", "words"),
    [
        (2, (60_000, 60_000), 9, 2**31, "60000 x 60000"),
        (2, (8_000, 8_000), 9, 64_000_000, ""),  # may be; the zeros go on beyond
        (2, (20_000, 4_000), 9, None, "does not fit"),
        (9, (8_000, 8_000), 6, 512_000_000, "does not fit"),  # 512 MB
        (2, (-1, -1), 9, 1, "-1 x -1"),
        *[(kind, (1, 1), 9, None, "does not fit") for kind in (0, 8, 10, 14, 15, 16, 19, 999, 0xFFFF)],
        *[(2, (1, 1), flags, None, "something else") for flags in (0, 1, 2, 3, 4, 5, 16, 17, 255, 0x809)],
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_mat_headers_are_judged_before_anything_is_unpacked(tmp_path, kind, shape, flags, count, words, packed):
    zeros = bytes(2**27 if packed and count else 1)
    data = mat_by_hand("<", kind, shape, zeros, flags, count, packed)
    tracemalloc.start()
    message = refused(read_mat_mask, write(tmp_path / "1.mat", data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in message and peak < (3e8 if count else 5e7)
