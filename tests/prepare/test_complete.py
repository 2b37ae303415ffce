"""An evaluation is of the whole split, and of the very expressions that its folder was built with."""

import json
import shutil
from dataclasses import replace

import pytest

from eval.evaluator import check_complete, evaluate
from eval.metrics import SampleScore
from tests.support.builder import batches
from tests.support.hostile import refused
from tests.support.memory_split import MemorySplit
from tests.support.small_model import tiny_model
from tests.support.tiny_set import edit_refs
from utils.prepared import PreparedSplit


def judged(split: PreparedSplit) -> list[SampleScore]:
    """What an evaluation of all of a split would give."""
    texts = [split.text(i) for i in range(len(split))]
    return [SampleScore(i, split.name(i), 0, 0, 1, text, image) for i, (_, text, image) in enumerate(texts)]


def test_every_expression_once():
    split = MemorySplit()
    scores = evaluate(tiny_model(), split, progress=False)
    check_complete(scores, split)
    for wrong in (scores[:-1], [*scores, scores[-1]], [*scores[:-1], scores[-2]]):
        assert "were evaluated but the split has" in refused(check_complete, wrong, split)


@pytest.mark.parametrize("flags", [[], ["--self_contained"]])
def test_the_expressions_that_meta_was_written_for(tiny, build, flags):
    assert build(tiny, "Gref", "val", *flags)[0] == 0
    folder = batches(tiny)
    scores = judged(PreparedSplit(folder, "val"))
    check_complete(scores, PreparedSplit(folder, "val"))
    for change in ({"sentence": "another"}, {"image_name": "another"}):
        other = [replace(scores[0], **change), *scores[1:]]
        assert "are not those that meta.json" in refused(check_complete, other, PreparedSplit(folder, "val"))
    shutil.copy(folder / "val_batch/Gref_val_3.npz", folder / "val_batch/Gref_val_8.npz")
    split = PreparedSplit(folder, "val")
    assert "are not those that meta.json was written for" in refused(check_complete, judged(split), split)
    meta = json.loads((folder / "meta.json").read_text())
    meta["splits"]["val"].pop("texts_sha256")  # as in a folder of an earlier version
    (folder / "meta.json").write_text(json.dumps(meta))
    split = PreparedSplit(folder, "val")
    check_complete(judged(split), split)


def test_expressions_of_odd_characters(tiny, build):
    texts = ["a\0", "größe \u202e \U0001f600", '\t"left" \\ \x7f', "\0.\0\0"]
    edit_refs(tiny, lambda refs: [refs[10 + i]["sentences"][0].update(sent=text) for i, text in enumerate(texts)])
    assert build(tiny, "Gref", "val")[0] == 0
    split = PreparedSplit(batches(tiny), "val")
    check_complete(judged(split), split)
