"""`--expressions`: what becomes of the words, and that the scores are those of the changed words."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch

from eval.controls import FUNCTION_WORDS, Control
from eval.evaluator import EvalSettings, encoder, evaluate
from models import load_restr
from models.inference import segment
from tests.eval.test_evaluate import metrics_in, run
from utils.device import Ranks
from utils.errors import InputError
from utils.prepared import PreparedSplit
from utils.text import Vocabulary, tokenize

TEXTS = [
    "the man in the red shirt",
    "Man on left",
    "zebra",
    "of the",
    "red, blue ; green.",
    " - the dog's ball (left) ",
    "man man man",
    "man man dog",
    ".",
    "?!",
    "größe 2nd row",
    "a" + " very" * 30 + " tall man",
]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def reworded(kind: str, **more) -> list[tuple[str, str]]:
    """(text, what becomes of it) of TEXTS, each as five different expressions."""
    control = Control(kind, **more)
    return [(text, control.reword(5 * i + j, text)) for i, text in enumerate(TEXTS) for j in range(5)]


def test_shuffled_words_are_the_same_in_another_order():
    for text, new in reworded("shuffled"):
        assert Counter(words(new)) == Counter(words(text))
        assert re.findall(r"\W+", new.strip()) == re.findall(r"\W+", text.strip())  # what stands between them
        assert (words(new) == words(text)) == (len(set(words(text))) < 2)
    orders = {new for text, new in reworded("shuffled") if text == TEXTS[0]}
    assert len(orders) > 2  # each expression has its own
    assert reworded("shuffled", seed=2) != reworded("shuffled") == reworded("shuffled", seed=1)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_the_first_words_stay(k):
    for text, new in reworded("first_k", first_k=k):
        assert words(new) == words(text)[:k]
        assert tokenize(new) == tokenize(text)[: len(tokenize(new))]  # with what stands between them
    assert Control("first_k").reword(0, "a b c d") == "a b"


def test_one_content_word_is_dropped():
    for text, new in reworded("dropped"):
        gone = Counter(words(text)) - Counter(words(new))
        content = [word for word in words(text) if word.lower() not in FUNCTION_WORDS]
        if len(words(text)) < 2 or not content:
            assert new == text
            continue
        assert sum(gone.values()) == 1 and len(words(new)) == len(words(text)) - 1 and set(gone) <= set(content)
        place = next(i for i, word in enumerate([*words(new), None]) if word != words(text)[i])
        assert words(new)[place:] == words(text)[place + 1 :]  # the others keep their order
        assert len(tokenize(text)) - len(tokenize(new)) in (1, 2)  # a word, and what follows it
    assert {word for text, new in reworded("dropped") if text == TEXTS[1] for word in words(text)} > {"Man", "left"}
    dropped = [set(words(text)) - set(words(new)) for text, new in reworded("dropped") if text == TEXTS[0]]
    assert {word for gone in dropped for word in gone} == {"man", "red", "shirt"}
    assert reworded("dropped", seed=2) != reworded("dropped")


def test_names_and_sentences():
    def marks(*of, **more):
        return Control(*of, **more).marks

    assert [marks(), marks("rotated"), marks(rotate_expressions=True)] == [[], ["rotated"], ["rotated"]]
    assert [marks("first_k"), marks("first_k", first_k=4, seed=9)] == [["first_2"], ["first_4"]]
    assert [marks("shuffled"), marks("dropped", seed=9)] == [["shuffled"], ["dropped", "seed9"]]


@pytest.fixture
def split(place) -> PreparedSplit:
    return PreparedSplit(place / "unc_32x48_batch", "val")


@pytest.fixture
def model(place):
    return load_restr(place / "exp/best.pth", "cpu")


def test_unchanged_words_have_the_ids_of_the_prepared_data(split, model, batches):
    for each, coder in ((split, model), (PreparedSplit(batches, "val"), torch.nn.Module())):
        for name in ("vocabulary", "subwords"):  # the second does not know its own, as the authors' files
            setattr(coder, name, getattr(coder, name, None))
        encode = encoder(coder, each)
        for i in range(len(each)):
            ids, text, _ = each.text(i)
            assert np.array_equal(encode(text), ids) and encode(text).dtype == ids.dtype
    plain = evaluate(model, split, progress=False)
    assert evaluate(model, split, reword=lambda _, text: text, progress=False) == plain


@pytest.mark.parametrize("kind", ["shuffled", "first_k", "dropped"])
def test_scores_are_those_of_the_changed_words(split, model, kind):
    reword = Control(kind).reword
    plain, scores = evaluate(model, split, progress=False), evaluate(model, split, reword=reword, progress=False)
    for score, before in zip(scores, plain, strict=True):
        assert score.sentence == reword(score.index, before.sentence) and score.length == before.length
        found, mask = segment(model, split.image(score.index), score.sentence).mask, split.mask(score.index)
        assert (score.intersection, score.union) == ((found & mask).sum(), (found | mask).sum())
    assert any(a.intersection != b.intersection for a, b in zip(scores, plain, strict=True))
    again = evaluate(model, split, EvalSettings(batch_size=3), num_workers=2, reword=reword, progress=False)
    assert again == scores
    together = []
    for rank in range(2):
        with pytest.raises(InputError, match="were evaluated"):  # the other did not come
            how = {"on_sample": lambda p: together.append(p.score), "reword": reword, "progress": False}
            evaluate(model, split, ranks=Ranks(torch.device("cpu"), rank, 2), **how)
    assert sorted(together, key=lambda score: score.index) == scores


def test_ids_of_another_vocabulary_are_an_error(split, model):
    words = model.vocabulary
    model.vocabulary = Vocabulary([*words[:4], *words[:3:-1]]).words
    with pytest.raises(InputError, match="its ids are not those of its words in the model's vocabulary"):
        evaluate(model, split, reword=Control("first_k", first_k=1).reword, progress=False)


@pytest.mark.parametrize(
    ("flags", "name", "told"),
    [
        (["shuffled"], "shuffled", "read with their words in another order (seed 1)"),
        (["shuffled", "--seed", "7"], "shuffled_seed7", "read with their words in another order (seed 7)"),
        (["first_k", "--first_k", "3"], "first_3", "cut to their first 3 words"),
        (["dropped"], "dropped", "read without one of their content words (seed 1)"),
    ],
)
def test_the_script_reports_the_loss(place, split, capsys, flags, name, told):
    common = ("--data_dir", split.folder, "--restore_refseg", place / "exp", "--iters", 500)
    run(*common)
    run(*common, "--expressions", *flags, "--is_vis", "0")
    plain, folder = metrics_in(place / "exp/eval_unc_val_500"), place / f"exp/eval_unc_val_500_{name}"
    metrics, lines = metrics_in(folder), (folder / "samples.jsonl").read_text().splitlines()
    read = [json.loads(line)["sentence"] for line in lines]
    changed = sum(text != split.text(i)[1] for i, text in enumerate(read))
    control = {"expressions": flags[0], "told": told, "changed": changed, "oIoU_plain": plain["oIoU"]}
    assert metrics["control"] == control and 0 < changed <= len(split)
    before, after = plain["oIoU"], metrics["oIoU"]
    shown = capsys.readouterr().out
    assert f"{changed} of {len(split)} expressions {told}: oIoU {before:.2f} -> {after:.2f}" in shown
    assert f"{before - after:.2f} lost" in shown and len(list((folder / "vis").glob("*.png"))) == 3 * len(split)


def test_rotated_is_the_flag_of_before(place, split, tmp_path):
    common = ("--data_dir", split.folder, "--checkpoint", place / "exp", "--output_dir")
    run(*common, tmp_path / "old", "--rotate_expressions")
    run(*common, tmp_path / "new", "--expressions", "rotated")
    old, new = ((tmp_path / name / "samples.jsonl").read_bytes() for name in ("old", "new"))
    assert old == new and metrics_in(tmp_path / "old")["control"] == metrics_in(tmp_path / "new")["control"]
