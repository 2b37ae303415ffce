"""Files of `torch.save` from strangers: tensors in dicts and lists, no code, and no more memory than the file has."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch.serialization import StorageType

from utils.errors import InputError, one_line
from utils.files.reading import checked_pickle

# Values that a checkpoint may carry beside its tensors, of which nothing is kept.
_IGNORED = re.compile(
    r"argparse Namespace|numpy[\w.]* \w+|_codecs encode|pathlib[\w.]* \w*Path|collections (defaultdict|Counter|deque)|"
    r"(builtins|__builtin__) (set|frozenset|slice|range|complex|int|float|bool|str|list|dict|tuple|object)|"
    r"torch (\w*int\d+|b?float\d+|bool|device)|torch\._utils _rebuild_\w+|torch\.serialization _get_layout"
)
_SHARED = 4  # times that tensors of one file may use the same numbers, on average


def load_tensors(path: Path | str) -> dict:
    """The dict in a file of `torch.save`, tensors on the CPU. Raises InputError.

    Nothing that the file names is imported or called. Of values other than tensors, dicts, lists, tuples, strings and
    numbers (a Namespace, a NumPy number) an empty placeholder is left.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("cut off, or written by PyTorch before 1.6: then load it and torch.save it again")
        with zipfile.ZipFile(path) as archive:
            values = _TensorUnpickler(archive, Path(path).stat().st_size).load()
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        raise InputError(f"{path}: damaged, or not a checkpoint ({one_line(error, 120)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a checkpoint: it holds a {type(values).__name__}")
    return values


class _Ignored:
    """Takes the place of a value that is not kept, whatever it is made and filled with."""

    def __init__(self, *arguments, **named):
        pass

    append = extend = __setitem__ = __init__


class _Dict(dict):
    """A dict without the keys whose hashes a file can choose to be equal, which name no tensor."""

    __slots__ = ()

    def __init__(self, *_):
        super().__init__()

    def __setitem__(self, key, value):
        if type(key) is str or type(key) is int and key.bit_length() < 64:
            super().__setitem__(key, value)


class _TensorUnpickler(pickle.Unpickler):
    """The pickle in an archive of `size` bytes. Each part is compared with its checksum when it is read."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        if sum(member.file_size for member in archive.infolist()) > size:
            raise ValueError("its parts are larger than the file, which torch.save never compresses")
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl of its own")
        self.archive, self.folder = archive, pickles[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("it was written on a machine with another order of bytes")
        super().__init__(checked_pickle(archive.read(pickles[0]), "it", builds=False), encoding="latin1")
        self.numbers: dict[str, bytearray] = {}  # by the name of a storage
        self.room = _SHARED * size  # bytes of tensors
        self.known = {
            "data dict": _Dict,
            "collections OrderedDict": _Dict,
            "torch Size": lambda sizes=(): sizes,
            "torch._utils _rebuild_tensor": self.tensor,
            "torch._utils _rebuild_tensor_v2": self.tensor,
            "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
        }

    def find_class(self, module: str, name: str):
        if module == "torch" and name.endswith("Storage"):
            return StorageType(name).dtype
        named = f"{module} {name}"
        if named not in self.known and not _IGNORED.fullmatch(named):
            raise ValueError(f"it names {one_line(named, 80)}, which is not part of a checkpoint")
        return self.known.get(named, _Ignored)

    def persistent_load(self, saved: tuple) -> torch.Tensor:
        """The numbers of a storage as a tensor of one dimension."""
        _, dtype, key, _, count = saved
        if key not in self.numbers:
            self.numbers[key] = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        numbers = self.numbers[key]
        if not numbers:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(numbers, dtype=torch.uint8).view(dtype)[:count]

    def tensor(self, numbers: torch.Tensor, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
        tensor = numbers.as_strided(size, stride, offset)  # refuses what reaches beyond the storage
        self.room -= tensor.nbytes
        if tensor.nbytes > numbers.nbytes or self.room < 0:
            raise ValueError("a tensor claims more values than it holds")
        return tensor
