"""Files of `torch.save` from strangers: tensors in dicts and lists, no code, and no more memory than the file has."""

import pickle
import re
import zipfile
from pathlib import Path

import torch

from utils.errors import InputError, one_line
from utils.files.pickles import checked_pickle

# Values that a checkpoint may carry beside its tensors, of which nothing is kept.
_IGNORED = re.compile(
    r"argparse Namespace|numpy[\w.]* \w+|_codecs encode|pathlib[\w.]* \w*Path|collections (defaultdict|Counter|deque)|"
    r"(builtins|__builtin__) (set|frozenset|slice|range|complex|int|float|bool|str|list|dict|tuple|object)|"
    r"torch (\w*int\d+|b?float\d+|bool|device)|torch\._utils _rebuild_\w+|torch\.serialization _get_layout"
)
_STORAGES = {
    f"torch {name}Storage": getattr(torch, dtype)
    for name, dtype in zip(
        "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split(),
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split(),
        strict=True,
    )
}
_SHARED = 4  # times that tensors of one file may use the same numbers, on average


def load_tensors(path: Path | str) -> dict:
    """The dict in a file of `torch.save`, tensors on the CPU. Raises InputError.

    Nothing that the file names is imported or called. Of values other than tensors, dicts, lists, tuples, strings and
    numbers (a Namespace, a NumPy number) an empty placeholder is left.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        _require_zip(path)
        with zipfile.ZipFile(path) as archive:
            values = _TensorUnpickler(archive, _checked_pickle(archive, Path(path).stat().st_size)).load()
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        raise InputError(f"{path}: damaged, or not a checkpoint ({one_line(error, 120)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a checkpoint: it holds a {type(values).__name__}")
    return values


def _require_zip(path: Path | str) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError("cut off, or written by PyTorch before 1.6: then load it and torch.save it again")


def _checked_pickle(archive: zipfile.ZipFile, size: int) -> zipfile.ZipInfo:
    """The pickle in an archive of `size` bytes. Raises ValueError unless all in it is whole, and nothing is packed."""
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a name is in it twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its parts are larger than the file")
    if damaged := archive.testzip():
        raise ValueError(f"{damaged} is not what was written")
    named = {name: [m for m in members if m.filename.rpartition("/")[2] == name] for name in ("data.pkl", "byteorder")}
    if len(named["data.pkl"]) != 1:
        raise ValueError("it has no data.pkl of its own")
    if any(archive.read(member) != b"little" for member in named["byteorder"]):
        raise ValueError("it was written on a machine with another order of bytes")
    return named["data.pkl"][0]


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
    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo):
        super().__init__(checked_pickle(archive.read(member), "it", builds=False), encoding="latin1")
        self.archive, self.folder = archive, member.filename.removesuffix("data.pkl")
        self.numbers: dict[str, bytearray] = {}  # by the name of a storage
        self.room = _SHARED * sum(other.file_size for other in archive.infolist())  # bytes of tensors
        self.known = {
            **_STORAGES,
            "data dict": _Dict,
            "collections OrderedDict": _Dict,
            "torch Size": lambda sizes=(): sizes,
            "torch._utils _rebuild_tensor": self.tensor,
            "torch._utils _rebuild_tensor_v2": self.tensor,
            "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
        }

    def find_class(self, module: str, name: str):
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
