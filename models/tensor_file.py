"""Files of `torch.save` from strangers: tensors in dicts and lists, no code, and no more memory than the file has."""

import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import torch

from utils.errors import InputError, one_line

# What the pickle inside may name. weights_only=True admits more, such as bytearray(10**11), which takes the memory.
_NAMED = re.compile(
    r"collections OrderedDict|torch Size|torch (\w*Storage|\w*int\d+|b?float\d+|bool|device)|torch\.storage \w+|"
    r"torch\.nn\.parameter Parameter|torch\._utils _rebuild_\w+|torch\.serialization _get_layout"
)
_SHARED = 4  # times that tensors of one file may use the same numbers, on average


def load_tensors(path: Path | str) -> dict:
    """The dict in a file of `torch.save`, on the CPU, read with `weights_only=True`. Raises InputError.

    Code in the file is never run. The file is mapped while it is read, so that a tensor can neither lie outside of it
    nor be unpacked from it.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them
            _check_archive(path)
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if isinstance(values, dict):
                _copy_from_file(values, _SHARED * Path(path).stat().st_size)
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        raise InputError(f"{path}: damaged, or not a checkpoint ({one_line(error, 120)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a checkpoint: it holds a {type(values).__name__}")
    return values


def _check_archive(path: Path | str) -> None:
    """Raise ValueError unless nothing in the archive is packed and its pickle names harmless things only."""
    if not zipfile.is_zipfile(path):
        raise ValueError("cut off, or written by PyTorch before 1.6: then load it and torch.save it again")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("a name is in it twice")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does")
        if damaged := archive.testzip():  # mapping the file compares no check sum
            raise ValueError(f"{damaged} is not what was written")
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        for operation, argument, _ in pickletools.genops(archive.read(pickles[0])) if len(pickles) == 1 else ():
            if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _NAMED.fullmatch(argument or ""):
                raise ValueError(f"it names {argument}, which is no part of a checkpoint")


def _copy_from_file(values: dict, room: int) -> None:
    """Replace the tensors in nested dicts and lists by copies, which do not need the file any more."""
    boxes, seen = [values], set()
    while boxes:
        box = boxes.pop()
        if id(box) in seen:
            continue
        seen.add(id(box))
        items = box.items() if isinstance(box, dict) else enumerate(box) if isinstance(box, list) else ()
        for key, value in list(items):
            if not isinstance(value, torch.Tensor):
                boxes.append(value)
            elif value.layout == torch.strided and not value.is_meta:
                room -= value.nbytes
                if value.untyped_storage().nbytes() < value.nbytes or room < 0:
                    raise ValueError(f"{key} claims more values than it holds")
                box[key] = value.detach().clone()
