"""build_vocab.py: words by frequency, vectors from GloVe, nothing overwritten that was not asked for."""

import bz2
import gzip
import json
import lzma
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from build_vocab import vocabulary_words
from prepare.glove import embedding_table, read_glove
from tests.conftest import ROOT
from tests.support.forked import without_log
from tests.support.hostile import refused, write
from utils.text import SPECIAL_WORDS, Vocabulary, tokenize


def sentences(split: str, *texts: str) -> dict:
    return {"ref_id": len(texts), "ann_id": 1, "image_id": 1, "split": split, "sentences": [{"sent": t} for t in texts]}


@pytest.fixture
def root(tmp_path):
    for folder, file, texts in (
        ("refcoco", "refs(unc).p", ("man left", "Man, left.", "red hat")),
        ("refcocog", "refs(google).p", ("the man on the left , of the hat",)),
    ):
        path = tmp_path / "external/refer/data" / folder / file
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps([sentences("train", *texts), sentences("val", "unseen", "x")], 2))
    query = tmp_path / "data/referit/referit_query_trainval.json"
    query.parent.mkdir(parents=True)
    query.write_text(json.dumps({"7_1": ["sky", "blue sky"]}))
    return tmp_path


def build(*arguments, code: int = 0) -> str:
    """What the script prints, run from a folder that is not its own."""
    command = [sys.executable, ROOT / "build_vocab.py", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert result.returncode == code, result.stderr
    assert not code or without_log(result.stderr).count("\n") == 1
    return result.stdout + result.stderr


def test_words_are_those_that_a_look_up_can_find():
    words = vocabulary_words(["b a", "b, c..d", "B (a) e\u200bf g\u00a0!h", "x x. x", "y" * 1_001], min_count=1)
    # Not "," with its space, ". ", " (", ") ", a zero-width space, a no-break space, or a word without end.
    assert words == [*SPECIAL_WORDS, "b", "x", "a", "..", "c", "d", "e", "f", "g", "h"]
    assert vocabulary_words(["b a b"], min_count=2) == [*SPECIAL_WORDS, "b"]


def test_vocabulary_of_one_and_of_several_data_sets(root):
    printed = build("-d", "unc", "--root", root)
    path = root / "data/vocabulary_Gref.txt"
    assert path.read_text().split("\n") == [*SPECIAL_WORDS, "left", "man", "hat", "red", ""]
    assert "Gref_emb.npy: not made" in printed and "--random_embeddings" in printed
    path.unlink()
    build("-d", "refcoco", "refcocog", "referit", "--root", root)  # as the papers call them
    words = Vocabulary.load(path).words
    counts = dict.fromkeys(words, 0)
    for text in ("man left", "Man, left.", "red hat", "the man on the left , of the hat"):
        for piece in tokenize(text):
            counts[piece] = counts.get(piece, 0) + 1
    expected = sorted((w for w in counts if w == w.strip() and w not in SPECIAL_WORDS), key=lambda w: (-counts[w], w))
    assert words == [*SPECIAL_WORDS, *expected] and "unseen" not in words
    assert Vocabulary.load(root / "data/vocabulary_referit.txt").words == [*SPECIAL_WORDS, "sky", "blue"]


def test_an_existing_vocabulary_is_used_as_it_is(root):
    path = root / "data/vocabulary_Gref.txt"
    path.write_text("\n".join([*SPECIAL_WORDS, "left", "zebra"]))
    before = path.read_bytes()
    write(root / "glove.txt", b"man 1 2 3\nleft 3 2 0.5\n. . 0 0 0\n")
    printed = build("-d", "unc", "--root", root, "--glove", root / "glove.txt")
    assert "used as it is, 6 words" in printed and "6 x 3; 1 of 2 words" in printed
    assert path.read_bytes() == before
    table = np.load(root / "data/Gref_emb.npy")
    assert table.dtype == np.float32 and table.shape == (6, 3)
    assert not table[0].any() and table[4].tolist() == [3, 2, 0.5] and table[[1, 2, 3, 5]].all()
    first = (root / "data/Gref_emb.npy").read_bytes()
    build("-d", "unc", "--root", root, "--glove", root / "glove.txt")
    assert (root / "data/Gref_emb.npy").read_bytes() == first
    write(root / "glove.txt", b"left 1 2\nman 1\n")
    assert "line 2" in build("-d", "unc", "--root", root, "--glove", root / "glove.txt", code=2)
    write(root / "glove.txt", b"red 1 2 3\nhat 1 2 3\n")
    assert "has none of the 2 words" in build("-d", "unc", "--root", root, "--glove", root / "glove.txt", code=2)
    write(root / "glove.txt", b"left 1 2\n")
    assert "Gref_emb.npy: exists with" in build("-d", "unc", "--root", root, "--glove", root / "glove.txt", code=2)
    assert (root / "data/Gref_emb.npy").read_bytes() == first
    assert sorted(file.name for file in (root / "data").iterdir()) == ["Gref_emb.npy", "referit", "vocabulary_Gref.txt"]


def test_what_cannot_be_built_is_said_in_one_line(root):
    assert "-d foo: unknown data set; known are unc," in build("-d", "foo", code=2)
    assert "refs(unc).p: no such file" in build("-d", "unc+", "--root", root, code=2)
    assert "lower --min_count" in build("-d", "unc", "--root", root, "--min_count", "9", code=2)
    assert not list((root / "data").glob("vocabulary*"))


def test_mean_and_spread_are_the_whole_file_s(tmp_path):
    vectors = np.random.default_rng(3).normal(2, 3, (500, 4)).astype(np.float32)
    lines = [f"w{i} {' '.join(map(str, vector))}" for i, vector in enumerate(vectors.tolist())]
    glove = read_glove(write(tmp_path / "g.txt", "\n".join(["500 4", *lines]).encode()), ["w7", "w499", "none"])
    np.testing.assert_allclose(glove.mean, vectors.mean(axis=0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(glove.spread, vectors.std(axis=0, dtype=np.float64), rtol=1e-9)
    assert set(glove.vectors) == {"w7", "w499"}
    np.testing.assert_array_equal(glove.vectors["w499"], vectors[499])
    drawn = embedding_table(["<pad>"] + ["none"] * 20_000, glove, seed=1)[1:]
    np.testing.assert_allclose(drawn.mean(axis=0), glove.mean, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), glove.spread, rtol=0.05)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        *[(b"a 1 2\nb " + rest, 2) for rest in (b"1\n", b"1 x\n", b"1 nan\n", b"1 1e99\n", b"1" * 100_000)],
        *[(start, 1) for start in (b"a\n", b" " * 100_000, b"a " + b"1 " * 50_000, b"\x00\xff" * 99)],
        (b"\n\na 1 2\nb\n", 4),
    ],
)
def test_broken_glove_lines_are_named(tmp_path, content, line):
    assert f"g.txt: line {line} " in refused(read_glove, write(tmp_path / "g.txt", content), ["a"])


@pytest.mark.parametrize("start", [b"", b"\n \n", b"2 3\n", b"\xef\xbb\xbf2 3\n", b"\xef\xbb\xbf\r\n2 3\n"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b" \n\n", b"\n\n\n", b"\t\r\n \t\n"])
def test_marks_blank_lines_and_line_ends_of_glove_files(tmp_path, start, end):
    lines = b"the 1 2 3", b"", b"caf\xc3\xa9\t4\t5  6 ", b". . 7 8 9", b"the 4 5 6"  # of "the", the first counts
    content = start + (b"\r\n" if b"\r" in end else b"\n").join(lines) + end
    glove = read_glove(write(tmp_path / "g.txt", content), ["the", "café", ". ."])
    found = {word: vector.tolist() for word, vector in glove.vectors.items()}
    assert found == {"the": [1, 2, 3], "café": [4, 5, 6], ". .": [7, 8, 9]} and glove.mean.tolist() == [4, 5, 6]


def test_packed_empty_and_missing_glove_files(tmp_path):
    for pack, said in ((gzip.compress, "a gzip file"), (bz2.compress, "a bzip2 file"), (lzma.compress, "an xz file")):
        assert f"is {said}, not the" in refused(read_glove, write(tmp_path / "g.txt", pack(b"a 1 2\n")), ["a"])
    with zipfile.ZipFile(tmp_path / "glove.6B.zip", "w") as archive:
        archive.writestr("glove.6B.300d.txt", "a 1 2\n")
    assert "zip archive, not the text file itself; unpack it" in refused(read_glove, tmp_path / "glove.6B.zip", ["a"])
    assert "holds no words" in refused(read_glove, write(tmp_path / "g.txt", b""), ["a"])
    assert "no such file; get glove.6B.zip" in refused(read_glove, tmp_path / "none", ["a"])
