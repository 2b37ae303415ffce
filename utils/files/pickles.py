"""What Python's unpickler needs for files of strangers beside a `find_class` that refuses: a look at every opcode."""

import io
import pickletools

from utils.errors import InputError

MAX_OBJECTS = 16_000_000  # opcodes, and items that they copy; the largest real file takes about 9 million
_OPCODES = {o.code.encode("latin-1"): (o.name, o.arg and o.arg.reader) for o in pickletools.opcodes}
_OPCODES[b"S"] = "STRING", io.BytesIO.readline  # pickletools takes ASCII only
_NEW_DICT = b"cdata\ndict\n)R"  # a call of what stands in for "data.dict"
_REWRITTEN = {"EMPTY_DICT": _NEW_DICT, "DICT": b"1" + _NEW_DICT, "FRAME": b""}
_REWRITTEN |= {"EMPTY_SET": b"]", "FROZENSET": b"l", "ADDITEMS": b"e"}  # as lists


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
