"""npy and npz files of strangers: plain arrays only, no larger than their header says."""

import io
import math
import os
import zipfile
from typing import IO

import numpy as np

from utils.errors import InputError
from utils.files.reading import BUILD_REMEDY, MEBIBYTE, read_bytes, refusing, regular_file_size

MAX_NPZ_BYTES = 512 * MEBIBYTE  # of one array too, unpacked


def read_npz(
    path: str | os.PathLike, required_keys: tuple[str, ...], optional_keys: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The arrays `required_keys` of an npz file, in C order and native byte order; others are not even unpacked.

    Of `optional_keys` those that it has. The archive's check sums are compared.
    Raises InputError for a missing file or key, pickled objects, and sizes that do not fit what the file holds.
    """
    with refusing(path, "npz file", BUILD_REMEDY):
        regular_file_size(path, BUILD_REMEDY, MAX_NPZ_BYTES, "npz file")
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            arrays = {}
            for key in required_keys + optional_keys:
                member = f"{key}.npy"
                if member in members:
                    if archive.getinfo(member).file_size > MAX_NPZ_BYTES:  # no more than this will be read
                        raise ValueError(f"{member} unpacks to {archive.getinfo(member).file_size:,} bytes")
                    arrays[key] = _array_of(archive.read(member), member)
                elif key in required_keys:
                    raise InputError(f"{path}: holds no {key}; {BUILD_REMEDY}")
            return arrays


def read_npy(path: str | os.PathLike, remedy: str) -> np.ndarray:
    """The array of an npy file, in C order and native byte order. Raises InputError as `read_npz` does."""
    data = read_bytes(path, MAX_NPZ_BYTES, "npy file", remedy)
    with refusing(path, "npy file", remedy):
        return _array_of(data, "it")


def array_header(file: IO[bytes], size: int, member: str) -> tuple[tuple[int, ...], bool, np.dtype]:
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
    """The array of an npy file, booleans 0 or 1 whatever their bytes were."""
    header = io.BytesIO(data)
    shape, in_columns, dtype = array_header(header, len(data), member)
    array = np.ndarray(shape, dtype, data, header.tell(), order="F" if in_columns else "C")
    array = array.astype(dtype.newbyteorder("="), order="C")
    if dtype.kind == "b":
        return array.view(np.uint8) != 0
    if dtype.kind == "U":
        codes = np.atleast_1d(array).view(np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError("a string holds what is no character")
    return array
