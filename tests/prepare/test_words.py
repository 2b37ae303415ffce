"""The vocabulary and the word embeddings that training starts from."""

import numpy as np
import pytest

from tests.support.hostile import refused
from tests.support.memory_split import write_folder
from tests.support.small_model import VOCABULARY
from utils.prepared import PreparedSplit
from utils.text import Vocabulary, read_embeddings


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_of_any_floating_point_type(tmp_path, dtype):
    numbers = np.random.default_rng(1).normal(size=(5, 3)).astype(dtype)
    np.save(tmp_path / "emb.npy", numbers)
    table = read_embeddings(tmp_path / "emb.npy", 5, 3)
    assert table.dtype == np.float32 and np.array_equal(table, numbers.astype(np.float32))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (np.ones((5, 2)), "5 x 2, but"),
        (np.ones((6, 3)), "6 x 3, but"),
        (np.array(1.0), "one number, but"),
        (np.full((5, 3), "1.0"), "holds <U3 and not"),
        (np.ones((5, 3), bool), "holds bool and not"),
        (np.ones((5, 3), np.int64), "holds int64 and not"),
        (np.full((5, 3), np.nan), "not finite"),
        (np.full((5, 3), 1e300), "not finite"),
        (np.full((5, 3), -np.inf, np.float32), "not finite"),
    ],
)
def test_embeddings_that_cannot_be(tmp_path, table, said):
    np.save(tmp_path / "emb.npy", table)
    message = refused(read_embeddings, tmp_path / "emb.npy", 5, 3)
    assert f"{tmp_path}/emb.npy: " in message and said in message and "build_vocab.py" in message


def test_a_split_of_the_reference_learns_how_many_words_there_are(tmp_path):
    (tmp_path / "val_batch").mkdir()
    arrays = {"text_batch": np.arange(20), "sent_batch": ["left"], "im_name_batch": "x"}
    np.savez(tmp_path / "val_batch/unc_val_0.npz", **arrays)
    words = tmp_path / "words.txt"
    for count in (20, 19):
        Vocabulary(VOCABULARY.words[:count]).save(words)
        split = PreparedSplit(tmp_path, "val")
        assert split.words is None and split.text(0)[1] == "left"
        assert len(split.vocabulary(words)) == split.words == count
        if count == 20:
            assert split.text(0)[1] == "left"
    assert "unc_val_0.npz: text_batch is not 20 ids of words of the vocabulary" in refused(split.text, 0)


def test_a_vocabulary_that_is_not_the_folder_s(tmp_path):
    folder = write_folder(tmp_path)
    split = PreparedSplit(folder, "val")
    assert split.vocabulary().words == split.vocabulary(folder / "vocabulary.txt").words == VOCABULARY.words
    other = tmp_path / "other.txt"
    Vocabulary(VOCABULARY.words[:-1]).save(other)
    assert "leave the flag out" in refused(split.vocabulary, other)
    other.rename(folder / "vocabulary.txt")
    assert "is not the one in meta.json" in refused(split.vocabulary)


@pytest.mark.parametrize("meta", [True, False], ids=["ours", "the authors'"])
@pytest.mark.parametrize("link", ["data/mscoco", "data/mscoco/unc_32x48_batch"])
@pytest.mark.parametrize("given", ["eval/../data/mscoco/unc_32x48_batch/", "../data/x/../mscoco/./unc_32x48_batch"])
def test_tables_are_looked_for_along_the_path_that_was_given(tmp_path, monkeypatch, meta, link, given):
    """Not beside the target of a link: a large disk that holds the prepared data has no tables."""
    folder = write_folder(tmp_path / "disk/deep/mscoco")
    (tmp_path / "eval").mkdir()
    (tmp_path / link).parent.mkdir(parents=True)
    (tmp_path / link).symlink_to(folder.parent if link.endswith("mscoco") else folder)
    (tmp_path / "data/x").mkdir()
    if not meta:
        (folder / "meta.json").unlink()
        VOCABULARY.save(tmp_path / "data/vocabulary_Gref.txt")
    monkeypatch.chdir(tmp_path / "eval" if given.startswith("..") else tmp_path)
    split = PreparedSplit(given, "val")
    assert split.embeddings_file() == tmp_path / "data" / ("unc_emb.npy" if meta else "Gref_emb.npy")
    assert split.vocabulary().words == VOCABULARY.words
