"""Files changed as damage and malice change them: bytes, what is inside archives, and the values that they hold."""

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

NAMES = ["", "../../x", "a/b", "/etc/hostname", "..", "a\x1b[2Jb", "a\nb", "a\0b", "a\u202eb", "x" * 300, "é" * 12_000]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**70), 60_000, 1e308, 5e-324, 0.5, float("nan"), float("inf")]
VALUES = [None, True, *NAMES, *NUMBERS, [], {}, [[]], [None], {"a": 1}, ["left"] * 3, [0, 0, 9, 9]]
WORDS = [
    b"\0",
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"9" * 30,
    b"1e999",
    b"NaN",
    b'"',
    b"../",
    b"\x1b[2J",
    b"\xe2\x80\xae",
]


def mutated_bytes(random: Random, whole: bytes) -> bytes:
    """A few pieces replaced, removed, doubled or put in; or the end cut off. Of a packed file perhaps its content."""
    if random.randrange(3):
        for magic, inside in ((b"PK", _inside_zip), (b"\x89PNG", _inside_png), (b"MATLAB", _inside_mat)):
            if whole.startswith(magic):
                return inside(random, whole)
    return _changed(random, whole)


def _changed(random: Random, whole: bytes) -> bytes:
    changed = bytearray(whole)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(changed) + 1)
        end = min(place + random.randint(0, 8), len(changed))
        how = random.randrange(6)
        if how == 0:
            changed[place : place + 1] = bytes([random.randrange(256)])
        elif how == 1:
            changed[place:end] = random.choice(WORDS)
        elif how == 2:
            changed[place:place] = changed[place:end] * random.choice((1, 2, 500))
        elif how == 3:
            del changed[place:end]
        elif how == 4:
            changed[place:end] = struct.pack(random.choice("<>") + "I", random.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
        elif random.randrange(4) == 0:
            del changed[place:]
    return bytes(changed)


def _inside_zip(random: Random, whole: bytes) -> bytes:
    """One member changed, the check sums right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = random.choice(names + [name for name in names if name.endswith("data.pkl")] * len(names))
        for name in names:
            content = old.read(name)
            new.writestr(name, _changed(random, content) if name == chosen else content)
    return stream.getvalue()


def _inside_png(random: Random, whole: bytes) -> bytes:
    """One chunk changed, the check sums right."""
    parts, place = [whole[:8]], 8
    starts = []
    while place < len(whole):
        starts.append(place)
        place += 12 + struct.unpack(">I", whole[place : place + 4])[0]
    chosen = random.choice(starts)
    for start in starts:
        (length,) = struct.unpack(">I", whole[start : start + 4])
        kind, content = whole[start + 4 : start + 8], whole[start + 8 : start + 8 + length]
        if start == chosen:
            content = _changed(random, content)
        crc = struct.pack(">I", zlib.crc32(kind + content))
        parts += [struct.pack(">I", len(content)), kind, content, crc]
    return b"".join(parts)


def _inside_mat(random: Random, whole: bytes) -> bytes:
    """The content of a compressed element changed."""
    kind, length = struct.unpack("<II", whole[128:136])
    if kind != 15:
        return _changed(random, whole)
    packed = zlib.compress(_changed(random, zlib.decompress(whole[136 : 136 + length])))
    return whole[:128] + struct.pack("<II", 15, len(packed)) + packed


def mutated_value(random: Random, value: Any, extra: Sequence = ()) -> Any:
    """`value` (nested lists and dicts, which it changes) with one thing in it replaced, renamed or removed."""
    root = [value]
    box, key = root, 0
    while isinstance(box[key], (dict, list)) and box[key] and random.randrange(8):
        box = box[key]
        key = random.choice(list(box) if isinstance(box, dict) else range(len(box)))
    how = random.randrange(8)
    if how == 0 and isinstance(box, dict):
        box[random.choice(NAMES)] = box.pop(key)
    elif how == 1 and box is not root:
        del box[key]
    else:
        box[key] = random.choice([*VALUES, *extra])
    return root[0]


ARRAYS = [
    np.array(3),
    np.zeros(0),
    np.zeros((0, 5, 3), np.uint8),
    np.zeros((60_001, 1), bool),
    np.full((3, 3), np.nan),
    np.full(20, -1),
    np.full(20, 2**62),
    np.array(["../../x"]),
    np.array("a/b"),
    np.array(["\u202ex\x1b[2J"]),
    np.array([b"x"]),
    np.array([None], object),
    np.zeros(3, "c16"),
    np.zeros(3, "M8[s]"),
    np.array([("a", 1)], "U3,i4"),
]
