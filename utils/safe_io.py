"""Atomic writes, and guarded reading of files that strangers made.

Every reader raises InputError with one line that names the file and the remedy; none runs code from a file, and none
allocates what a header merely claims.
"""

import contextlib
import io
import json
import math
import os
import secrets
import stat
import struct
import threading
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError, naming, one_line
from utils.file_system import opened_folder

MEBIBYTE = 2**20
MAX_JSON_BYTES = 64 * MEBIBYTE
MAX_JSON_CONTAINERS = 8_000_000  # instances.json of RefCOCO: 197 thousand annotations, about 1 million lists and dicts
MAX_NPZ_BYTES = 512 * MEBIBYTE  # of one array too, unpacked
MAX_PACKING = 10  # of weights, which hardly pack at all
MAX_IMAGE_BYTES = 256 * MEBIBYTE
MAX_IMAGE_SIDE = 20_000  # pixels
MAX_IMAGE_PIXELS = 80_000_000  # 240 MB as RGB
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF", "JPEG2000", "AVIF")  # none starts a program
MAX_NAME_BYTES = 200  # leaves room for what is added to it; file systems stop at 255
TEMPORARY_PREFIX = ".writing-"  # a killed process leaves such files behind; they can be removed

BUILD_REMEDY = "delete it and run build_batches.py again with the same flags"
_IMAGE_REMEDY = "download it again"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_EXTRAS = (b"tRNS", b"eXIf")  # of the chunks that a PNG can do without, those that change what is read
_stderr_lock = threading.Lock()

# Pillow warns of what is refused here anyway, and of damaged metadata, which nothing here reads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` only when the block ends without an exception.

    The temporary stands in the same folder under a hidden name of its own and is removed on failure. `durable`: the
    disk has the content before the name appears, and the name at the end. Raises OSError, which names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
    with naming(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError) and error.filename == str(temporary):
                error.filename = str(path)  # the name that the user knows
            raise
    if durable:
        for folder in path.absolute().parents:  # new ones among them are durable when the folder above them is
            with contextlib.suppress(OSError), opened_folder(folder) as handle:  # not every file system can
                os.fsync(handle)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically and durably. NaN and infinity are not JSON: ValueError."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


_FOREIGN = (  # first bytes of what a download, or a tool, saves under another name
    (b"version https://git-lfs", "a Git LFS pointer; get the file itself with git lfs pull"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "packed with gzip; unpack it"),
    (b"\xfd7zXZ", "packed with xz; unpack it"),
    (b"BZh", "packed with bzip2; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a rar archive; unpack it"),
    (b"%PDF", "a PDF document"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
_ZIPPED = (".npz", ".pth", ".pt", ".zip")  # files that are zip archives as they should be


def foreign_content(path: object) -> str | None:
    """What a file really is, by its first bytes, where no reader here reads that: a web page, an archive, nothing."""
    try:
        if not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            head = file.read(512)
    except (OSError, TypeError, ValueError):
        return None
    if not head:
        return "an empty file"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (HTML)"
    kind = next((kind for start, kind in _FOREIGN if head.startswith(start)), None)
    return None if kind and "zip archive" in kind and Path(path).suffix.lower() in _ZIPPED else kind


@contextlib.contextmanager
def refusing(name: object, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading `name` as `what` into an InputError that ends with `remedy`."""
    try:
        yield
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{name}: no such file; {remedy}") from error
    except OSError as error:
        # Image and archive decoders also report damaged content as OSError, then without an error number.
        kind = None if error.errno else foreign_content(name)
        fault = error.strerror if error.errno else f"is truncated, damaged or no {what}"
        raise InputError(f"{name}: {f'is {kind}' if kind else fault}; {remedy}") from error
    except Exception as error:  # decoders of broken files raise nearly anything, RecursionError and MemoryError too
        kind = foreign_content(name)
        if kind:
            raise InputError(f"{name}: is {kind}; {remedy}") from error
        fault = one_line(f"{type(error).__name__}: {error}", 100)
        raise InputError(f"{name}: is not a readable {what} ({fault}); {remedy}") from error


def regular_file_size(path: str | os.PathLike, remedy: str) -> int:
    """Bytes of a regular file. Raises InputError for a pipe, a device or a folder, OSError for a missing file."""
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is not a regular file; {remedy}")
    return status.st_size


def _check_size(path: str | os.PathLike, limit: int, what: str, remedy: str) -> None:
    size = regular_file_size(path, remedy)
    if size > limit:
        raise InputError(f"{path}: {size:,} bytes, but a {what} has at most {limit:,}; {remedy}")


def read_bytes(path: str | os.PathLike, limit: int, what: str, remedy: str) -> bytes:
    """Content of a regular file of at most `limit` bytes. Raises InputError: missing, no file, larger."""
    with refusing(path, what, remedy):
        _check_size(path, limit, what, remedy)
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(limit)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def read_json(
    path: str | os.PathLike,
    what: str = "JSON file",
    remedy: str = "make or download it again",
    limit: int = MAX_JSON_BYTES,
    allow_nan: bool = False,
) -> Any:
    """The value in a UTF-8 JSON file of at most `limit` bytes; see `json_value`. Raises InputError."""
    data = read_bytes(path, limit, what, remedy)
    if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS:
        raise InputError(f"{path}: has more lists than any {what} needs; {remedy}")
    with refusing(path, what, remedy):
        return json_value(data, allow_nan)


def json_value(data: bytes, allow_nan: bool = False) -> Any:
    """The value of UTF-8 JSON text. Raises ValueError and RecursionError.

    A key that is there twice is an error: Python would keep the last one. So are NaN and Infinity, unless allowed.
    """
    constant = None if allow_nan else _refuse_constant
    return json.loads(data.decode("utf-8-sig"), parse_constant=constant, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'the key "{one_line(twice, 40)}" is there twice')
    return value


def safe_name(name: object, where: str) -> str:
    """`name` if it is a plain file name, which cannot leave its folder, hide, or garble a terminal.

    Raises InputError that starts with `where` (the file, and the entry in it, which gave the name).
    """
    if not isinstance(name, str):
        raise InputError(f"{where}: a file name is a {type(name).__name__}, not a string")
    plain = name.isprintable() and not any(c in '/\\:*?"<>|' for c in name)
    if not plain or not name or name != name.strip() or name.startswith((".", "~", "-")):
        raise InputError(f'{where}: "{one_line(name, 80)}" is not a plain file name, which it must be')
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{where}: the file name {name[:40]}... is longer than {MAX_NAME_BYTES} bytes")
    return name


def read_npz(
    path: str | os.PathLike,
    required_keys: tuple[str, ...],
    remedy: str = BUILD_REMEDY,
    optional_keys: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """The arrays `required_keys` of an npz file, in C order and native byte order; others are not even unpacked.

    Of `optional_keys` those that it has. The archive's check sums are compared.
    Raises InputError for a missing file or key, pickled objects, and sizes that do not fit what the file holds.
    """
    with refusing(path, "npz file", remedy):
        _check_size(path, MAX_NPZ_BYTES, "npz file", remedy)
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            for key in required_keys:
                if f"{key}.npy" not in members:
                    raise InputError(f"{path}: holds no {key}; {remedy}")
            keys = required_keys + tuple(key for key in optional_keys if f"{key}.npy" in members)
            return {key: _unpacked(archive, f"{key}.npy") for key in keys}


def _unpacked(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    declared = archive.getinfo(member).file_size
    if declared > MAX_NPZ_BYTES:
        raise ValueError(f"{member} unpacks to {declared:,} bytes")
    return _array_of(archive.read(member), member)  # reads no more than was declared


def read_npy(path: str | os.PathLike, remedy: str) -> np.ndarray:
    """The array of an npy file, in C order and native byte order. Raises InputError as `read_npz` does."""
    data = read_bytes(path, MAX_NPZ_BYTES, "npy file", remedy)
    with refusing(path, "npy file", remedy):
        return _array_of(data, "it")


def check_npz(path: str | os.PathLike, remedy: str) -> None:
    """Raise InputError for an npz file that np.load would take far more memory for than the file has bytes."""
    with refusing(path, "npz file", remedy), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_PACKING * regular_file_size(path, remedy):
            raise ValueError(f"it unpacks to {unpacked:,} bytes")
        for member in members:
            with archive.open(member) as file:
                _array_header(file, member.file_size, member.filename)


def _array_header(file: IO[bytes], size: int, member: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in columns, and type of the array in an npy file of `size` bytes, which have to fit."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, in_columns, dtype = readers[version](file)
    if dtype.kind not in "biufU" or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{member} holds {dtype} of shape {shape}")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"{member} is not as long as its header says")
    return shape, in_columns, dtype


def _array_of(data: bytes, member: str) -> np.ndarray:
    header = io.BytesIO(data)
    shape, in_columns, dtype = _array_header(header, len(data), member)
    array = np.ndarray(shape, dtype, data, header.tell(), order="F" if in_columns else "C")
    return _whole_values(array.astype(dtype.newbyteorder("="), order="C"))


def _whole_values(array: np.ndarray) -> np.ndarray:
    """Booleans as 0 or 1 whatever their bytes were; strings only if every character exists."""
    if array.dtype.kind == "b":
        return array.view(np.uint8) != 0
    if array.dtype.kind == "U":
        codes = np.atleast_1d(array).view(np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError("a string holds what is no character")
    return array


def read_image(
    source: str | os.PathLike | bytes,
    name: object = None,
    remedy: str = _IMAGE_REMEDY,
    upright: bool = False,
    crc32: int | None = None,
) -> np.ndarray:
    """An image file, or its bytes, as uint8 H x W x 3, RGB in 0..255; see `to_rgb` for other kinds of pixels.

    Of an animation the first picture counts. `upright` turns it as its EXIF orientation says, for photographs; COCO's
    masks are in the coordinates of the pixels as stored. `crc32`: of the file's bytes, where it is known.
    Raises InputError, naming `name` (default: the path), for what is no image, is damaged, has another sum, is empty
    or beyond MAX_IMAGE_*.
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
    with refusing(path, "image", remedy):
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
        return _object_in(image)


def _object_in(image: Image.Image) -> np.ndarray:
    """The object in a mask, as `read_mask_png` says."""
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
    source: str | os.PathLike | bytes,
    name: object,
    remedy: str,
    crc32: int | None = None,
    formats: tuple[str, ...] = IMAGE_FORMATS,
) -> Iterator[Image.Image]:
    """The image with its size checked, from memory, so that nothing but its own bytes can be read."""
    if name is None:
        name = "image" if isinstance(source, bytes) else source
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_IMAGE_BYTES, "image", remedy)
    if crc32 not in (None, zlib.crc32(data)):
        raise InputError(f"{name}: is not as it was written (CRC-32); {remedy}")
    with (
        refusing(name, "image", remedy),
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
        if not kind[0] & 0x20 or kind in _PNG_EXTRAS:  # a small first letter: a reader may leave it out
            kept.append(whole[place:end])
        place = end
    return b"".join([*kept, whole[place:]])


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
