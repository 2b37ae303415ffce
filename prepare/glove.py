"""Word vectors from a GloVe text file, read line by line: the largest has 5 GB and few of its words are wanted."""

import codecs
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.cli import progress_bar
from utils.errors import InputError
from utils.files.reading import refusing, regular_file_size

MAX_LINE = 100_000  # bytes; a line of 300 numbers has about 3,000
MAX_WIDTH = 4_096
PACKED = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file"}
_REMEDY = "get glove.6B.zip from https://nlp.stanford.edu/projects/glove/ and give its glove.6B.300d.txt"


@dataclass(frozen=True)
class Glove:
    """`vectors`: float32 [D] by word, of the words asked for; `mean` and `spread`: float64 [D] over the whole file."""

    vectors: dict[str, np.ndarray]
    mean: np.ndarray
    spread: np.ndarray


def read_glove(path: str | os.PathLike, words: Iterable[str]) -> Glove:
    """Vectors of `words`, and the mean and standard deviation of every dimension over all words of the file.

    Of a word that comes twice the first line counts. Raises InputError, which names the line that is broken.
    """
    wanted = {word.encode("utf-8", "surrogatepass"): word for word in words}
    vectors: dict[str, np.ndarray] = {}
    count, total, squares = 0, 0.0, 0.0
    with refusing(path, "GloVe text file", _REMEDY):
        for name, vector in _rows(Path(path)):
            count += 1
            total = total + vector.astype(np.float64)
            squares = squares + np.square(vector, dtype=np.float64)
            if name in wanted:
                vectors.setdefault(wanted[name], vector)
    if not count:
        raise InputError(f"{path}: holds no words; {_REMEDY}")
    mean = total / count
    return Glove(vectors, mean, np.sqrt(np.maximum(squares / count - mean**2, 0)))


def embedding_table(words: list[str], glove: Glove, seed: int) -> np.ndarray:
    """float32 V x D: GloVe's vectors, the others drawn with its mean and spread, row 0 (<pad>) zero."""
    random = np.random.default_rng(seed)
    table = random.normal(glove.mean, glove.spread, (len(words), len(glove.mean))).astype(np.float32)
    for row, word in enumerate(words):
        if word in glove.vectors:
            table[row] = glove.vectors[word]
    table[0] = 0
    return table


def _rows(path: Path) -> Iterator[tuple[bytes, np.ndarray]]:
    """(word, float32 [D]) of every line; D is what the first line has.

    A byte order mark, blank lines and a word2vec header are skipped.
    """
    width = None
    size = regular_file_size(path, _REMEDY)
    bar = progress_bar(total=size, unit="B", unit_scale=True, desc=path.name, leave=False)
    with path.open("rb") as file, bar:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE)
            if not line:
                return
            bar.update(len(line))
            if number == 1:
                for magic, kind in PACKED.items():
                    if line.startswith(magic):
                        fault = f"is {kind}, not the text file itself; unpack it and give the .txt in it"
                        raise InputError(f"{path}: {fault}")
                line = line.removeprefix(codecs.BOM_UTF8)
            fields = line.split()
            is_header = width is None and len(fields) == 2 and all(field.isdigit() for field in fields)
            if is_header or (not fields and len(line) < MAX_LINE):
                continue
            width = width or len(fields) - 1
            if not 0 < width <= min(MAX_WIDTH, len(fields) - 1) or len(line) == MAX_LINE:
                raise InputError(f"{path}: line {number} is not a word and {width or 'its'} numbers; {_REMEDY}")
            yield b" ".join(fields[:-width]), _vector(fields[-width:], f"{path}: line {number}")


def _vector(fields: list[bytes], where: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # too large for float32: infinite, and refused below
            vector = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise InputError(f"{where} holds something that is not a number; {_REMEDY}") from error
    if not np.isfinite(vector).all():
        raise InputError(f"{where} holds a number that is not finite; {_REMEDY}")
    return vector
