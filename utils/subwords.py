"""Expressions to ids by a tokeniser of Hugging Face, for text encoders of transformers."""

import hashlib
from functools import lru_cache
from types import ModuleType

import numpy as np

from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE
from utils.text import checked_expression

MAX_TOKENIZER_BYTES = 64 * MEBIBYTE


def import_transformers() -> ModuleType:
    """The package, which not everybody has and which takes seconds to import. Raises InputError if it is missing."""
    try:
        import transformers
    except ImportError as error:
        fault = f"a text encoder needs transformers, which cannot be imported ({one_line(error, 80)})"
        raise InputError(f"{fault}: pip install -r requirements-text.txt") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


class Subwords:
    """A tokeniser in the place of a `utils.text.Vocabulary`. `words` is its tokenizer.json, which checkpoints hold.

    Args: length, ids of an expression; size, of the encoder's vocabulary, plus 1.
    Raises InputError if `words` is not a tokeniser, or one of another vocabulary; `name` (a file) begins the message.
    """

    def __init__(self, words: str, length: int, size: int, name: object = "tokeniser"):
        self.words, self._length = words, length
        import_transformers()
        try:
            if len(words) > MAX_TOKENIZER_BYTES:
                raise ValueError("it is too large")
            self._tokenizer = _tokenizer(words, length)
            largest = max(self._tokenizer.get_vocab().values())
        except Exception as error:  # the package raises nothing more special
            raise InputError(f"{name}: not a tokenizer.json ({one_line(error, 120)})") from None
        if largest + 1 >= size:
            raise InputError(f"{name}: has an id {largest}, but its encoder's vocabulary has {size - 1} tokens")

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of `words` in UTF-8."""
        return hashlib.sha256(self.words.encode()).hexdigest()

    def ids(self, expression: str, where: str = "expression") -> np.ndarray:
        """The first tokens, with the special ones, as ids plus 1, int64 [length], padded with 0 at the end.

        Raises InputError, which begins with `where`, for an empty expression.
        """
        found = self._encode(expression, where).ids
        return np.array([number + 1 for number in found] + [0] * (self._length - len(found)), np.int64)

    def split(self, expression: str) -> tuple[list[str], list[str]]:
        """What the tokens of `ids` stand for in the expression, special ones by their own names; and the rest of it."""
        found = self._encode(expression)
        text = checked_expression(expression)
        read = [text[slice(*place)].strip() or token for place, token in zip(found.offsets, found.tokens, strict=True)]
        rest = text[max(end for _, end in found.offsets) :].split() if found.overflowing else []
        return read, rest

    def unknown(self, expression: str) -> list[str]:
        """No word is unknown to a tokeniser of pieces."""
        return []

    def _encode(self, expression: str, where: str = "expression"):
        text = checked_expression(expression, where)
        try:
            return self._tokenizer.encode(text)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of the package, which is in Rust, is no Exception
            raise InputError(f"{where}: its tokeniser cannot read it ({one_line(error, 80)})") from None


@lru_cache(4)
def _tokenizer(words: str, length: int):
    """A tokeniser that cuts at `length`; made once, which takes a quarter of a second for 50,000 tokens."""
    from tokenizers import Tokenizer  # comes with transformers

    tokenizer = Tokenizer.from_str(words)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer
