"""Image and mask files of strangers, checked by their header before they are decoded."""

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError
from utils.files.reading import BUILD_REMEDY, MEBIBYTE, read_bytes, refusing, regular_file_size

MAX_IMAGE_BYTES = 256 * MEBIBYTE
MAX_IMAGE_SIDE = 20_000  # pixels
MAX_IMAGE_PIXELS = 80_000_000  # 240 MB as RGB
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF", "JPEG2000", "AVIF")  # none starts a program
_IMAGE_REMEDY = "download it again"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_stderr_lock = threading.Lock()


def read_image(
    source: str | os.PathLike | bytes,
    name: object = None,
    remedy: str = _IMAGE_REMEDY,
    upright: bool = False,
    crc32: int | None = None,
) -> np.ndarray:
    """An image file, or its bytes, as uint8 H x W x 3, RGB in 0..255; see `to_rgb` for other kinds of pixels.

    Of an animation the first image counts. `upright` turns it as its EXIF orientation says, for photographs; COCO's
    masks are in the coordinates of the pixels as stored. `crc32`: of the file's bytes, where it is known.
    Raises InputError, naming `name` (default: the path), for what is not an image, is damaged, has another sum, is
    empty or beyond MAX_IMAGE_*.
    """
    with _opened_image(source, name, remedy, crc32) as image:
        return to_rgb(image, upright)


def to_rgb(image: Image.Image, upright: bool = False) -> np.ndarray:
    """A PIL image as uint8 H x W x 3: gray becomes three equal channels, 16 bits become 8, alpha is dropped.

    `upright`: turned as its EXIF orientation says. Raises ValueError for pixels that are floating-point numbers.
    """
    if upright:
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF raises nearly anything; without EXIF an image is upright
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return np.repeat(((gray + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    return np.array(image.convert("RGB"))


def read_image_size(path: str | os.PathLike, remedy: str = _IMAGE_REMEDY) -> tuple[int, int]:
    """(height, width) that the head of an image file says, without decoding it. Raises InputError as `read_image`."""
    with refusing(path, "image", remedy), _silent_pillow():
        regular_file_size(path, remedy)
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(24)
            if head.startswith(_PNG_SIGNATURE) and len(head) == 24:  # Pillow would unpack the texts before the pixels
                width, height = struct.unpack(">II", head[16:])
            else:
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    width, height = image.size
        _check_pixels(path, width, height)
        return height, width


def read_mask_png(path: str | os.PathLike, remedy: str = BUILD_REMEDY, crc32: int | None = None) -> np.ndarray:
    """A mask PNG as bool H x W (bytes 0 and 1), the object by what the file is.

    With a palette: where the index is not 0. Where alpha is 0 in a part of the image: the rest. Else: where any channel
    is not 0. Raises InputError as `read_image` does.
    """
    with _opened_image(path, None, remedy, crc32, formats=("PNG",)) as image:
        if image.mode in ("RGB", "RGBA") and "16B" in str(image.tile):
            raise ValueError("it has colours of 16 bits, of which Pillow reads 8: save it with 8, or as 16-bit gray")
        pixels = np.asarray(image)
        if image.mode == "1":
            pixels = pixels.view(np.uint8)  # 0 and 255, as whose bytes True is not 1
        if image.mode == "P" or image.mode == "1" and "transparency" not in image.info:
            return pixels != 0
        channels = pixels.reshape(*pixels.shape[:2], -1)  # H W C
        visible = None
        if image.mode in ("LA", "RGBA"):
            visible, channels = channels[..., -1] != 0, channels[..., :-1]
        elif "transparency" in image.info:
            visible = (channels != np.array(image.info["transparency"])).any(axis=2)
        if visible is not None and visible.any() and not visible.all():
            return visible
        return channels.any(axis=2)


@contextlib.contextmanager
def _opened_image(
    source: str | os.PathLike | bytes, name: object, remedy: str, crc32: int | None, formats: tuple = IMAGE_FORMATS
) -> Iterator[Image.Image]:
    """The image with its size checked, from memory, so that nothing but its own bytes can be read."""
    whole = isinstance(source, bytes)
    name = name or ("image" if whole else source)
    data = source if whole else read_bytes(source, MAX_IMAGE_BYTES, "image", remedy)
    if crc32 not in (None, zlib.crc32(data)):
        raise InputError(f"{name}: is not as it was written (CRC-32); {remedy}")
    with (
        refusing(name, "image", remedy),
        _silent_pillow(),
        Image.open(io.BytesIO(_without_texts(data)), formats=formats) as image,
    ):
        _check_pixels(name, *image.size)
        if image.format == "TIFF":
            with _silent_stderr():
                image.load()
        yield image


def _without_texts(data: bytes) -> bytes:
    """A PNG without texts and profiles: Pillow refuses large ones, and nothing here reads them. Others as they are."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, place = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    whole = memoryview(data)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if not kind[0] & 0x20 or kind in (b"tRNS", b"eXIf"):  # a small first letter: a reader may leave it out
            kept.append(whole[place:end])
        place = end
    return b"".join([*kept, whole[place:]])


@contextlib.contextmanager
def _silent_pillow() -> Iterator[None]:
    """Pillow warns of what is refused here anyway, and of damaged metadata, which nothing here reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing on standard error meanwhile, also of C code: libtiff prints there what it dislikes."""
    with _stderr_lock, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # it is closed: silent already
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nothing:  # noqa: PTH123
                os.dup2(nothing.fileno(), 2)
        yield


def _check_pixels(name: object, width: int, height: int) -> None:
    if not (0 < width <= MAX_IMAGE_SIDE and 0 < height <= MAX_IMAGE_SIDE and width * height <= MAX_IMAGE_PIXELS):
        limit = f"at most {MAX_IMAGE_SIDE:,} a side and {MAX_IMAGE_PIXELS:,} in all are read"
        raise InputError(f"{name}: {width} x {height} pixels, but {limit}; scale it down")
