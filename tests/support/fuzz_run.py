"""Files changed as damage and malice change them: bytes, what is inside archives, and the values that they hold.

They are read in a process that may be lost: `fuzz` is for tests.support.forked.start.
"""

import faulthandler
import io
import json
import os
import resource
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.support.fuzz_readers import READERS, Case
from utils.errors import InputError

SECONDS, MEMORY = 10, 4 * 2**30
NAMES = ["", "../../x", "a/b", "/etc/hostname", "..", "a\x1b[2Jb", "a\nb", "a\0b", "a\u202eb", "x" * 300, "é" * 12_000]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**70), 60_000, 1e308, 5e-324, 0.5, float("nan"), float("inf")]
VALUES = [None, True, *NAMES, *NUMBERS, [], {}, [[]], [None], {"a": 1}, ["left"] * 3, [0, 0, 9, 9]]
LENGTHS = [struct.pack(order + "I", n) for order in "<>" for n in (0, 1, 2**16, 2**31, 2**32 - 1)]
WORDS = [b"\0", b"\xff\xff\xff\x7f", b"9" * 30, b"1e999", b"NaN", b'"', b"../", b"\x1b[2J", b"\xe2\x80\xae"]


def fuzz(name: str, folder: Path, examples: int, fresh: bool) -> None:
    """Read `examples` mutated files; how many differ, and how many of these are read, goes to FOLDER/counts.json.

    Fails by an exception, by ending the process at a file that takes SECONDS, or on one that takes 4 GiB; the file
    stays. The same files each time, unless `fresh`.
    """
    folder.mkdir()
    case = READERS[name](folder)
    pages = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (pages + MEMORY,) * 2)
    for whole in case.wholes:
        case.path.write_bytes(whole)
        case.read()
    seen: dict[int, bool] = {}  # hash of a file -> whether it was read
    random = Random(None if fresh else name)
    for _ in range(examples):
        whole = random.choice(case.wholes)
        if case.values and random.random() < 0.5:
            content = case.values.dump(mutated_value(random, case.values.load(whole), case.values.extra))
        else:
            content = mutated_bytes(random, whole)
        case.path.write_bytes(content)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        seen[hash(content)] = _is_read(case, folder)
        faulthandler.cancel_dump_traceback_later()
    counts = {"files": len(seen), "read": sum(seen.values())}
    (folder / "counts.json").write_text(json.dumps(counts))


def _is_read(case: Case, folder: Path) -> bool:
    """Whether the file gives a value; if not, it has to be refused as a terminal and a user need it."""
    try:
        case.read()
        return True
    except InputError as error:
        message = str(error)
    lines = message.splitlines()  # several where a file of the user's own has several faults
    assert all(line.isprintable() and len(line) < 700 for line in lines), repr(message)
    assert case.path.name in message or str(folder) in message, message
    assert "MemoryError" not in message and "llocate" not in message, message  # it asked for more than it may have
    return False


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
        match random.randrange(6):
            case 0:
                changed[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                changed[place:end] = random.choice(WORDS)
            case 2:
                changed[place:place] = changed[place:end] * random.choice((1, 2, 500))
            case 3:
                del changed[place:end]
            case 4:
                changed[place:end] = random.choice(LENGTHS)
            case 5 if random.randrange(4) == 0:
                del changed[place:]
    return bytes(changed)


def _inside_zip(random: Random, whole: bytes) -> bytes:
    """One member changed, a pickle as often as all others; the check sums right."""
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
    chunks, place = [], 8
    while place < len(whole):
        end = place + 8 + int.from_bytes(whole[place : place + 4])
        chunks.append((whole[place + 4 : place + 8], whole[place + 8 : end]))
        place = end + 4
    chosen, png = random.randrange(len(chunks)), whole[:8]
    for i, (kind, content) in enumerate(chunks):
        content = _changed(random, content) if i == chosen else content
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png


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
