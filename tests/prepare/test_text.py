"""Expressions to ids, against the ids that the authors' implementation gave."""

import hashlib
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SHARED, needs_shared
from tests.support.hostile import FUZZ, refused, write
from utils.errors import InputError
from utils.text import MAX_EXPRESSION, SPECIAL_WORDS, TEXT_LENGTH, Vocabulary, tokenize

SMALL = Vocabulary([*SPECIAL_WORDS, "left", "man", ",", "'", "s", "."])


@needs_shared
@pytest.mark.filterwarnings("ignore:.*lone")
def test_ids_are_the_reference_s():
    cases = json.loads((SHARED / "reference/text_cases.json").read_text())
    assert sum(map(len, cases.values())) == 34
    for name, expected_of in cases.items():
        vocabulary = Vocabulary.load(SHARED / f"vocabulary/vocabulary_{name}.txt")
        for sentence, expected in expected_of.items():
            if isinstance(expected, str):  # it crashed
                assert "is empty" in refused(vocabulary.ids, sentence)
            else:
                ids = vocabulary.ids(sentence)
                assert ids.dtype == np.int64 and ids.tolist() == expected, (name, sentence)


def test_pieces_by_hand():
    assert tokenize(" The Man,  left's . ") == ["the", "man", ",  ", "left", "'", "s", " ."]
    assert tokenize("man.") == ["man"] and tokenize("man..") == ["man", ".."]
    assert tokenize("") == tokenize("  ") == tokenize(".") == []
    ids = SMALL.ids("Man's hat")
    assert ids.shape == (TEXT_LENGTH,) and ids.tolist() == [0] * 16 + [5, 7, 8, 3]
    assert SMALL.ids("left " * 15 + "man " * 15).tolist() == [4] * 15 + [5] * 5  # the first twenty
    assert SMALL.unknown("big man, left") == ["big", ", "]


def test_a_lone_dot_is_pads_and_a_warning():
    with pytest.warns(UserWarning, match="here: the expression is a lone"):
        assert SMALL.ids(" . ", "here").tolist() == [0] * TEXT_LENGTH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SMALL.ids("man.")


def test_empty_and_endless_expressions_are_refused():
    assert refused(SMALL.ids, " \t", "ref 7").startswith("ref 7: the expression is empty")
    assert "10,001 characters" in refused(SMALL.ids, "x" * (MAX_EXPRESSION + 1))
    refused(SMALL.ids, "man\n" * 25_000_000)


def test_vocabulary_file(tmp_path):
    lines = ["<pad>", "<go> ", "<eos>", "<unk>", "man", " .", "left", ".", "größe"]
    path = write(tmp_path / "v.txt", "\r\n".join(lines).encode())
    vocabulary = Vocabulary.load(path)
    assert vocabulary.words == [line.strip() for line in lines] and len(vocabulary) == 9
    assert vocabulary.ids("größe .. man")[-3:].tolist() == [8, 3, 4]
    assert Vocabulary.load(write(path, "\n".join(lines).encode() + b"\n")).words == vocabulary.words
    assert vocabulary.sha256 == hashlib.sha256("\n".join(line.strip() for line in lines).encode()).hexdigest()
    assert Vocabulary([*SPECIAL_WORDS, ".", "a", "."]).ids("a.a")[-2] == 6  # of equal lines the last


@pytest.mark.parametrize(
    "content",
    [b"", b"man\nleft\n", b"<pad>\n<go>\n<eos>\n", b"<pad>\n<go>\n<eos>\n<unk>\n\xff\n"]
    + ["\n".join([*SPECIAL_WORDS, "x" * 1_001]).encode(), "\n".join(SPECIAL_WORDS).encode() + b"\n" * 1_999_998],
)
def test_broken_vocabulary_files_are_refused(tmp_path, content):
    assert "no such file; make one with build_vocab.py" in refused(Vocabulary.load, tmp_path / "v.txt")
    assert "v.txt: " in refused(Vocabulary.load, write(tmp_path / "v.txt", content))
    refused(Vocabulary, [*SPECIAL_WORDS, 3])


@FUZZ
@given(st.text())
def test_any_text_has_twenty_ids_or_is_refused(sentence):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = SMALL.ids(sentence)
    except InputError:
        assert not sentence.strip()
    else:
        count = min(len(tokenize(sentence)), TEXT_LENGTH)
        assert not ids[: TEXT_LENGTH - count].any() and ids[TEXT_LENGTH - count :].all()
