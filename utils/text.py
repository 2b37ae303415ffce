"""Expressions to ids, as in the authors' code (docs/PAPER.md), and the word embeddings that a model starts from."""

import hashlib
import os
import re
import warnings
from pathlib import Path

import numpy as np

from utils.errors import InputError, one_line
from utils.files.arrays import read_npy
from utils.files.reading import MEBIBYTE, read_bytes, refusing
from utils.files.writing import atomic_write

TEXT_LENGTH = 20
SPECIAL_WORDS = ("<pad>", "<go>", "<eos>", "<unk>")
PAD, UNKNOWN = SPECIAL_WORDS.index("<pad>"), SPECIAL_WORDS.index("<unk>")

MAX_EXPRESSION = 10_000  # characters; the longest of the public data sets has a few hundred
MAX_VOCABULARY_BYTES = 64 * MEBIBYTE
MAX_WORDS = 2_000_000
MAX_WORD = 1_000  # characters

_SEPARATORS = re.compile(r"(\W+)")
_VOCABULARY_REMEDY = "make one with build_vocab.py (one word a line, UTF-8, first <pad> <go> <eos> <unk>)"


def checked_expression(expression: str, where: str = "expression") -> str:
    """The expression without white space around it.

    Raises InputError for an empty one, which begins with `where`, and for more than MAX_EXPRESSION characters.
    """
    if not expression.strip():
        raise InputError(f"{where}: the expression is empty; describe the object in a word or more")
    if len(expression) > MAX_EXPRESSION:
        shown = one_line(expression, 40)
        raise InputError(f"an expression has {len(expression):,} characters, more than {MAX_EXPRESSION:,}: {shown!r}")
    return expression.strip()


def tokenize(expression: str) -> list[str]:
    """Lower-case tokens of an expression: words, and the separators between them as they stand (", " with its space).

    A last token that is exactly "." is dropped. Empty for an expression that is blank or a lone ".".
    Raises InputError for an expression of more than MAX_EXPRESSION characters.
    """
    text = checked_expression(expression) if expression.strip() else ""
    tokens = [token.lower() for token in _SEPARATORS.split(text) if token.strip()]
    return tokens[:-1] if tokens[-1:] == ["."] else tokens


class Vocabulary:
    """Words by id. `words[0:4]` are SPECIAL_WORDS; of equal words the last gives the id.

    Raises InputError if `words` is anything else; `name` (a file) begins the message.
    """

    def __init__(self, words: list[str], name: object = "vocabulary"):
        if not all(isinstance(word, str) for word in words):
            raise InputError(f"{name}: holds something that is not a word; {_VOCABULARY_REMEDY}")
        if tuple(words[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
            raise InputError(f"{name}: does not begin with {' '.join(SPECIAL_WORDS)}; {_VOCABULARY_REMEDY}")
        if len(words) > MAX_WORDS or max(map(len, words)) > MAX_WORD:
            limit = f"at most {MAX_WORDS:,} words of {MAX_WORD:,} characters"
            raise InputError(f"{name}: a vocabulary has {limit}; {_VOCABULARY_REMEDY}")
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Read a vocabulary file: UTF-8, one word a line, the line number is the id. Raises InputError."""
        data = read_bytes(path, MAX_VOCABULARY_BYTES, "vocabulary", _VOCABULARY_REMEDY)
        with refusing(path, "vocabulary", _VOCABULARY_REMEDY):
            lines = re.split("\r\n|\r|\n", data.decode("utf-8-sig"))
        if not lines[-1]:
            lines.pop()
        return cls([line.strip() for line in lines], path)

    def save(self, path: Path) -> None:
        """Write a vocabulary file, which `load` reads. Raises OSError."""
        with atomic_write(path) as file:
            file.write("".join(f"{word}\n" for word in self.words).encode())

    def __len__(self) -> int:
        return len(self.words)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the words joined by line feeds, in UTF-8."""
        return hashlib.sha256("\n".join(self.words).encode("utf-8", "surrogatepass")).hexdigest()

    def ids(self, expression: str, where: str = "expression") -> np.ndarray:
        """The first TEXT_LENGTH tokens as ids, int64 [20], padded with 0 at the front.

        Raises InputError, which begins with `where`, for an empty expression. A lone "." gives 20 pads and a warning.
        """
        tokens = tokenize(checked_expression(expression, where))[:TEXT_LENGTH]
        if not tokens:
            warnings.warn(f"{where}: the expression is a lone '.', which has no words", stacklevel=2)
        ids = [self._ids.get(token, UNKNOWN) for token in tokens]
        return np.array([PAD] * (TEXT_LENGTH - len(ids)) + ids, np.int64)

    def split(self, expression: str) -> tuple[list[str], list[str]]:
        """The tokens that `ids` has, and those beyond them."""
        tokens = tokenize(expression)
        return tokens[:TEXT_LENGTH], tokens[TEXT_LENGTH:]

    def unknown(self, expression: str) -> list[str]:
        """The tokens of the expression that the vocabulary lacks, in order of appearance."""
        return [token for token in tokenize(expression) if token not in self._ids]


def read_embeddings(path: Path, words: int, width: int) -> np.ndarray:
    """A `*_emb.npy` table as float32 words x width, all finite.

    Raises InputError if it is missing, damaged, of another shape, or holds anything else.
    """
    remedy = "make it with build_vocab.py --glove FILE, or train with --random_embeddings"
    table = read_npy(path, remedy)
    if table.shape != (words, width):
        shape = " x ".join(map(str, table.shape)) or "one number"
        raise InputError(f"{path}: {shape}, but vocabulary and --l_backbone need {words} x {width}; {remedy}")
    if table.dtype.kind != "f":
        raise InputError(f"{path}: holds {table.dtype} and not floating-point numbers; {remedy}")
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused
        table = table.astype(np.float32)
    if not np.isfinite(table).all():
        raise InputError(f"{path}: holds numbers that are not finite float32; {remedy}")
    return table
