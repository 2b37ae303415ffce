"""Guarded reading of files that strangers made.

Every reader raises InputError with one line that names the file and the remedy; none runs code from a file, and none
allocates what a header merely claims.
"""

import contextlib
import io
import json
import math
import os
import pickletools
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import InputError, one_line

MEBIBYTE = 2**20
MAX_JSON_BYTES = 64 * MEBIBYTE
MAX_JSON_CONTAINERS = 8_000_000  # instances.json of RefCOCO: 197 thousand annotations, about 1 million lists and dicts
MAX_NAME_BYTES = 200  # leaves room for what is added to it; file systems stop at 255
BUILD_REMEDY = "delete it and run build_batches.py again with the same flags"
MAX_OBJECTS = 16_000_000  # opcodes, and items that they copy; the largest real file takes about 9 million
_OPCODES = {o.code.encode("latin-1"): (o.name, o.arg and o.arg.reader) for o in pickletools.opcodes}
_OPCODES[b"S"] = "STRING", io.BytesIO.readline  # pickletools takes ASCII only
_NEW_DICT = b"cdata\ndict\n)R"  # a call of what stands in for "data.dict"
_REWRITTEN = {"EMPTY_DICT": _NEW_DICT, "DICT": b"1" + _NEW_DICT, "FRAME": b""}
_REWRITTEN |= {"EMPTY_SET": b"]", "FROZENSET": b"l", "ADDITEMS": b"e"}  # as lists
_FOREIGN = (  # first bytes of what a download, or a tool, saves under another name
    (b"version https://git-lfs", "a Git LFS pointer; get the file itself with git lfs pull"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "packed with gzip; unpack it"),
    (b"\xfd7zXZ", "packed with xz; unpack it"),
    (b"BZh", "packed with bzip2; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a rar archive; unpack it"),
    (b"%PDF", "a PDF document"),
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text; save it as UTF-8"),
)


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
    if head.startswith(b"PK") and Path(path).suffix.lower() in (".npz", ".pth", ".pt", ".zip"):  # as it should be
        return None
    return next((kind for start, kind in _FOREIGN if head.startswith(start)), None)


@contextlib.contextmanager
def refusing(name: object, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading `name` as `what` into an InputError that ends with `remedy`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders of broken files raise nearly anything, RecursionError and MemoryError too
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            fault = "no such file"
        elif isinstance(error, OSError) and error.errno:
            fault = error.strerror
        elif kind := foreign_content(name):
            fault = f"is {kind}"
        elif isinstance(error, OSError):  # of image and archive decoders
            fault = f"is truncated, damaged or no {what}"
        else:
            fault = f"is not a readable {what} ({one_line(f'{type(error).__name__}: {error}', 100)})"
        raise InputError(f"{name}: {fault}; {remedy}") from error


def regular_file_size(path: str | os.PathLike, remedy: str, limit: float = math.inf, what: str = "file") -> int:
    """Bytes of a regular file. Raises InputError for a pipe, a device, a folder and more than `limit`; OSError."""
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is not a regular file; {remedy}")
    if status.st_size > limit:
        raise InputError(f"{path}: {status.st_size:,} bytes, but a {what} has at most {limit:,}; {remedy}")
    return status.st_size


def read_bytes(path: str | os.PathLike, limit: int, what: str, remedy: str) -> bytes:
    """Content of a regular file of at most `limit` bytes. Raises InputError: missing, no file, larger."""
    with refusing(path, what, remedy):
        regular_file_size(path, remedy, limit, what)
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


def checked_pickle(data: bytes, path: object, builds: bool = True) -> io.BufferedReader:
    """The pickle with its dicts made by a call of "data.dict", its sets as lists, without states unless `builds`.

    The type that stands in for "data.dict" should hash no number or tuple of the file's choice: a million of these can
    share one hash.
    Raises ValueError where it is cut off or a memo's index is larger than the file, InputError for too many objects.
    """
    rewritten = _REWRITTEN if builds else {**_REWRITTEN, "BUILD": b"0"}  # POP
    file, parts, kept = io.BytesIO(data), [], 0
    read = file.read
    for _ in range(MAX_OBJECTS):
        name, argument_of = _OPCODES[read(1)]
        argument = argument_of(file) if argument_of else None
        if name in {"PUT", "BINPUT", "LONG_BINPUT"} and not 0 <= argument <= len(data):
            raise ValueError("an index of its memo is larger than the file")
        if name in rewritten:
            parts += data[kept : file.tell() - (9 if name == "FRAME" else 1)], rewritten[name]
            kept = file.tell()
            if name == "DICT" and data[kept - 2 : kept - 1] != b"(":
                raise ValueError("it has a dict as no pickle has")
        elif name == "STOP":
            return io.BufferedReader(io.BytesIO(b"".join([*parts, data[kept : file.tell()]])))
    raise InputError(f"{path}: holds more than {MAX_OBJECTS:,} objects; do not use it")
