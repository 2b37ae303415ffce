"""Readers of strangers' files: right on whole ones, one line on broken ones, and no code of theirs ever runs."""

import errno
import io
import itertools
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prepare.refs_pickle import read_pickle
from tests.conftest import SHARED, needs_shared
from tests.support.hostile import FUZZ, attacks, refused, survives, write
from utils.errors import InputError, one_line
from utils.files.arrays import read_npy, read_npz
from utils.files.images import MAX_IMAGE_SIDE, read_image, read_image_size, read_mask_png
from utils.files.reading import read_bytes, read_json, safe_name
from utils.files.writing import atomic_write, link_or_copy, write_json

GRAY16 = np.array([[0, 128, 129], [257, 65535, 40000]], np.uint16)


# Writing


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path):
    path = write(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"old"
    with atomic_write(path, durable=True) as file:
        file.write(b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"new"


@pytest.mark.parametrize(("folder", "number"), [("none", errno.ENOENT), ("", errno.ENOSPC)])
def test_a_file_that_cannot_be_written_is_named_as_the_user_knows_it(tmp_path, folder, number):
    path = tmp_path / folder / "metrics.json"
    with pytest.raises(OSError) as raised, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (raised.value.errno, raised.value.filename, list(tmp_path.iterdir())) == (number, str(path), [])


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_of_a_file(tmp_path, monkeypatch, links):
    """One file where there are hard links; what is written under one name later does not change the other."""
    if not links:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EPERM, "no hard links")))
    source, name = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"one")
    name.write_bytes(b"an older one")
    for _ in range(2):
        link_or_copy(source, name)
        assert (name.read_bytes(), source.samefile(name)) == (b"one", links)
    with atomic_write(source) as file:
        file.write(b"two")
    assert name.read_bytes() == b"one"
    link_or_copy(source, name)
    source.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and name.read_bytes() == b"two"


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, "é", None], "a": 0.1})
    assert read_json(path) == {"b": [1, "é", None], "a": 0.1}
    assert path.read_text().endswith("\n") and list(json.loads(path.read_text())) == ["b", "a"]
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert read_json(path)["a"] == 0.1
    for broken in (b"[NaN]", b"[1" + b"0" * 5000 + b"]", b"[" * 100_000, b'"\xff"', b"{", b"", b'{"a": -Infinity}'):
        assert "a.json" in refused(read_json, write(path, broken))
    assert "more lists" in refused(read_json, write(path, b"[" * 8_000_001))


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(read_bytes, tmp_path / "pipe", 10, "x", "y")
    assert "not a regular file" in refused(read_json, tmp_path)
    assert "no such file; make" in refused(read_json, tmp_path / "none")
    assert "at most 2" in refused(read_bytes, write(tmp_path / "a", b"123"), 2, "x", "y")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../x", "a/b", "a\\b", "/x", ".hidden", "-rf", "~", "a\nb", "a\0", "a\u202eb", "\ud800"]
    + ["x" * 300, "é" * 120, " a", "c:x", 3, None, b"a"],
)
def test_only_plain_names_pass(name):
    for plain in ("COCO_train2014_000000581857.jpg", "unc+_val_3", "30993_2", "größe 1.png"):
        assert safe_name(plain, "here") == plain
    assert refused(safe_name, name, "refs.p: ref 3").startswith("refs.p: ref 3: ")


def doubled(value: object, kind: type):
    """Held twice by what is held twice, and so on: 2**60 values in a few bytes."""
    for _ in range(60):
        value = kind([(0, value), (1, value)])
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\x1b[1m\u202e", r"a\nb\x1b[1m\u202e"),
        ("x" * 100, "x" * 57 + "..."),
        (Path("a/b"), "a/b"),
        (InputError("two", "lines"), r"two\nlines"),
        ({"a": [1, None, "é"]}, "{'a': [1, None, 'é']}"),
        ((True, 0.5, 10**20), "(True, 0.5, 100000000000000000000)"),
        (OrderedDict(a=np.zeros(2)), "{'a': array([0., 0.])}"),
        ([[[[1]]]], "[[[[...]]]]"),
        (doubled(1, list), "[(0, [(...), (...)]), (1, [(...), (...)])]"),
        (doubled(1, OrderedDict), "{0: {0: {0: {...}, 1: {...}}, 1: {0: {...}, 1: {...}}}, 1..."),
        (10**5000, "<int that cannot be shown>"),
        ([-(10**5000)], "<list that cannot be shown>"),
        (ValueError(10**5000), "<ValueError that cannot be shown>"),
    ],
    ids=itertools.count(),
)
def test_any_value_is_one_short_line(value, shown):
    line = one_line(value, 60)
    assert line == shown and len(line) <= 60 and line.isprintable()


# Arrays


def npz_with(member: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", member)
    return file.getvalue()


def npy_header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_npz_round_trip(tmp_path):
    arrays = {
        "ids": np.arange(20), "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "text": np.array(["left ★"]),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "mask": np.array([[True, False]]),
        "name": np.array("x"), "big_endian": np.arange(3, dtype=">i4"), "empty": np.zeros((0, 3)),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read = read_npz(tmp_path / "a.npz", tuple(arrays))
        for key, array in arrays.items():
            np.testing.assert_array_equal(read[key], array)
            assert read[key].shape == array.shape and read[key].dtype == array.dtype.newbyteorder("=")
    np.save(tmp_path / "a.npy", arrays["image"])
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", "fix it"), arrays["image"])
    assert [*read_npz(tmp_path / "a.npz", ("ids",), ("name", "none"))] == ["ids", "name"]
    assert "holds no mask_batch" in refused(read_npz, tmp_path / "a.npz", ("ids", "mask_batch"))


def test_pickled_objects_in_npz_are_never_loaded(tmp_path):
    for attack in attacks(tmp_path / "owned"):
        np.savez(tmp_path / "a.npz", a=np.array([attack], object))
        refused(read_npz, tmp_path / "a.npz", ("a",))
        assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "member",
    [
        npy_header("(40000, 40000, 40000)") + b"1234",  # allocates 58 TiB if believed
        npy_header("(1,)", "'<U1'") + b"\xff\xff\xff\xff",  # no such character
        npy_header("(-1,)"), npy_header("(4,)") + b"12345", npy_header("(4,)", "'<U0'"),
        npy_header("(1,)", "[('a', 'O')]") + b"12345678", npy_header("(" * 500 + ")" * 500),
        b"\x93NUMPY\x09\x00", b"\x80\x04N.", b"",
    ],
)  # fmt: skip
def test_broken_arrays_are_refused(tmp_path, member):
    refused(read_npz, write(tmp_path / "a.npz", npz_with(member)), ("a",))
    refused(read_npy, write(tmp_path / "a.npy", member), "fix it")


def test_a_zip_bomb_is_refused_unread(tmp_path):
    data = npz_with(npy_header("(4,)") + b"1234")
    size = struct.pack("<I", len(npy_header("(4,)")) + 4)
    bomb = data.replace(size, struct.pack("<I", 2**31))
    assert bomb != data
    refused(read_npz, write(tmp_path / "a.npz", bomb), ("a",))


def test_booleans_are_0_or_1_whatever_the_file_says(tmp_path):
    write(tmp_path / "a.npz", npz_with(npy_header("(3,)", "'|b1'") + b"\x00\x02\xff"))
    mask = read_npz(tmp_path / "a.npz", ("a",))["a"]
    assert mask.view(np.uint8).tolist() == [0, 1, 1]


# Images


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@needs_shared
def test_photographs_are_read_as_skimage_reads_them():
    from skimage.io import imread

    files = sorted((SHARED / "refcoco_mini/data/coco/images/train2014").glob("*.jpg"))
    assert len(files) == 37
    for file in files:
        expected = imread(file)
        expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=2)
        np.testing.assert_array_equal(read_image(file), expected)
        np.testing.assert_array_equal(read_image(file.read_bytes(), file.name), expected)


def test_image_modes_become_rgb():
    colour, gray = pixels(5, 7, 3), pixels(5, 7)
    palette = Image.fromarray(colour // 200 * 200).convert("P", palette=Image.Palette.ADAPTIVE)
    for image, expected in [
        (Image.fromarray(colour), colour),
        (Image.fromarray(np.concatenate([colour, pixels(5, 7, 1)], axis=2)), colour),
        (Image.fromarray(gray), np.stack([gray] * 3, 2)),
        (Image.fromarray(gray).convert("LA"), np.stack([gray] * 3, 2)),
        (palette, np.array(palette.convert("RGB"))),
        (Image.fromarray(gray > 99), np.stack([(gray > 99) * 255] * 3, 2)),
    ]:
        np.testing.assert_array_equal(read_image(encoded(image)), expected)
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    cmyk = read_image(encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100))
    np.testing.assert_allclose(cmyk, flat, atol=3)


def test_16_bits_become_8():
    expected = np.round(GRAY16 / 65535 * 255).astype(np.uint8)
    ppm = b"P5 3 2 65535\n" + GRAY16.astype(">u2").tobytes()
    for data in (encoded(Image.fromarray(GRAY16)), ppm):
        np.testing.assert_array_equal(read_image(data), np.stack([expected] * 3, axis=2))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, bits: int, raw: bytes) -> bytes:
    """A colour PNG whose pixels are packed from `raw`."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (MAX_IMAGE_SIDE + 1, 1), (10_000, 10_000), (0, 0), (2**31, 2**31)])
def test_images_of_impossible_size_are_refused_before_decoding(tmp_path, size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "bomb.png" in refused(read_image, write(tmp_path / "bomb.png", png_of(*size, 8, bytes(1000))))


def test_damaged_images_are_refused(tmp_path):
    whole = encoded(Image.fromarray(pixels(64, 64, 3)), "JPEG")
    path = write(tmp_path / "x.jpg", whole[: len(whole) // 2])
    assert refused(read_image, path) == f"{path}: is truncated, damaged or no image; download it again"
    for data in (b"", b"not an image", whole[:3], encoded(Image.fromarray(pixels(9, 9)))[:-30]):
        assert "x.jpg" in refused(read_image, data, "x.jpg")
    refused(read_image, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would be handed to another program


@pytest.mark.parametrize(
    ("kind", "options", "modes"),
    [
        ("TIFF", {}, ["RGB", "L", "I;16", "1", "P", "RGBA", "CMYK"]),
        ("TIFF", {"compression": "tiff_lzw"}, ["RGB", "L", "I;16"]),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, ["RGB", "L", "I;16"]),
        ("JPEG2000", {"irreversible": False}, ["RGB", "L", "RGBA", "I;16"]),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, ["RGB"]),
    ],
)
def test_other_formats_are_read_as_a_png_of_the_same_pixels(tmp_path, kind, options, modes):
    for mode in modes:
        image = Image.fromarray(pixels(40, 30, 3)).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200 + 7)
        path = write(tmp_path / "x.tif", encoded(image, kind, **options))
        expected = read_image(encoded(image.convert("RGB") if mode == "CMYK" else image))
        np.testing.assert_allclose(read_image(path).astype(int), expected, atol=12 if kind == "AVIF" else 0)
        assert read_image_size(path) == (40, 30)


def test_of_many_pages_the_first_counts_and_floats_are_refused(tmp_path, capfd):
    first, second = (Image.fromarray(pixels(8, side, 3)) for side in (9, 12))
    stack = encoded(first, "TIFF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(stack), np.asarray(first))
    floats = write(tmp_path / "x.tif", encoded(Image.fromarray(pixels(8, 9).astype(np.float32)), "TIFF"))
    assert "floating-point" in refused(read_image, floats)
    cut = encoded(first, "TIFF", compression="tiff_adobe_deflate")
    refused(read_image, cut.replace(cut[20:60], bytes(40)))  # libtiff prints what it dislikes
    os.write(2, b"x")
    assert capfd.readouterr().err == "x"


def test_texts_of_any_length_in_a_png_are_left_out(tmp_path):
    """Pillow refuses what unpacks to more than a MB."""
    image, text = Image.fromarray(pixels(20, 30, 3)), b"x" * 2**22
    orientation = Image.Exif()
    orientation[0x0112] = 6
    chunks = [
        png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(text)),
        png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(text)),
        png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(text)),
        png_chunk(b"tEXt", b"parameters\0" + text),
        png_chunk(b"eXIf", orientation.tobytes()[6:]),
    ]
    data = encoded(image)
    place = data.index(b"IDAT") - 4
    for inserted in (*chunks, b"".join(chunks) * 20):
        path = write(tmp_path / "x.png", data[:place] + inserted + data[place:])
        np.testing.assert_array_equal(read_image(path), np.asarray(image))  # not turned, either
        np.testing.assert_array_equal(read_mask_png(path), np.asarray(image).any(axis=2))
        assert read_image_size(path) == (20, 30)
    assert read_image(path, upright=True).shape == (30, 20, 3)


MASK = pixels(5, 9) > 128


def _palette(first: int, bits: int) -> Image.Image:
    """Index 0 outside, whatever its colour."""
    image = Image.fromarray(MASK.astype(np.uint8) * (1 if bits == 1 else 3), "P")
    image.putpalette([first] * 3 + [255 - first] * 3 + [0] * 3 * 254)
    return image


def _joined(*bands: object) -> Image.Image:
    """Bands of 8 bits: arrays of the mask's size, or one value."""
    stacked = [np.broadcast_to(np.asarray(band, np.uint8), MASK.shape) for band in bands]
    return Image.fromarray(np.ascontiguousarray(np.stack(stacked, 2)))


@pytest.mark.parametrize(
    ("image", "options"),
    [
        *[(Image.fromarray(MASK * np.array(value, kind)), {}) for kind, value in (("?", 1), ("u1", 1), ("u1", 255))],
        *[(Image.fromarray(MASK * np.uint16(value)), {}) for value in (1, 256)],
        (_palette(255, 8), {}),
        (_palette(0, 8), {}),
        (_palette(255, 1), {"bits": 1}),
        (_palette(0, 8), {"transparency": 0}),
        (_palette(0, 8), {"transparency": bytes([9, 0, 255, 200])}),
        (_joined(0, 0, MASK), {}),  # ids as colours
        (_joined(255, 255, 255, MASK * 255), {}),  # cut out of white
        (_joined(0, 0, 0, MASK), {}),
        *[(_joined(9 * MASK, 0, 0, alpha), {}) for alpha in (255, 0, 255 - MASK)],  # alpha says nothing
        (_joined(255, 255 * MASK), {}),
        (_joined(MASK, 255), {}),
        (_joined(MASK, MASK, MASK), {"transparency": (0, 0, 0)}),
        (_joined(255 * MASK, 200, 200), {"transparency": (0, 200, 200)}),
        (Image.fromarray(np.where(MASK, 0, 255).astype(np.uint8)), {"transparency": 255}),
        (Image.fromarray(~MASK), {"transparency": 255}),
    ],
)
def test_a_mask_is_what_the_png_says(tmp_path, image, options):
    read = read_mask_png(write(tmp_path / "m.png", encoded(image, **options)))
    assert read.dtype == bool and set(np.unique(read.view(np.uint8))) <= {0, 1}
    np.testing.assert_array_equal(read, MASK)


def test_masks_of_16_bit_colours_and_of_other_formats_are_refused(tmp_path):
    row = b"\0" + struct.pack(">6H", 0, 0, 1, 0, 0, 0)  # filter; id 1, of which Pillow reads 0
    path = write(tmp_path / "m.png", png_of(2, 1, 16, row))
    assert "colours of 16 bits" in refused(read_mask_png, path)
    refused(read_mask_png, write(path, encoded(Image.fromarray(MASK), "JPEG")))  # its edges are not those of the mask


# Mutations


@FUZZ
@given(st.binary(max_size=60))
def test_arbitrary_bytes(tmp_path, data):
    path = write(tmp_path / "a", data)
    for read in (read_json, read_pickle, read_image, read_mask_png):
        survives(read, path)
    survives(read_npz, path, ("a",))
