"""What a run judges (--val_limit, --overfit), and what it tries before its first step."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_restr
from eval.evaluator import evaluate
from eval.metrics import summarise
from models import load_restr
from tests.support.small_model import tiny_model
from tests.support.train_runs import FLAGS, arguments, equal, outcome, records, refused, state, train
from train.data import judged
from train.folders import open_folders
from train.options import parse_options
from train.run import Run, data_of
from utils.device import Ranks
from utils.errors import InputError
from utils.prepared import PreparedSplit

ALONE = Ranks(torch.device("cpu"))


class Counted:
    """A split of which only its size is known; a part of it is the list of indices."""

    def __init__(self, dataset, number):
        self.dataset, self.number = dataset, number

    def __len__(self):
        return self.number

    def select(self, indices):
        return indices


@pytest.mark.parametrize(
    ("dataset", "number", "limit", "expected"),
    [
        ("referit", 60_105, None, 10_000),
        ("referit", 60_105, 0, 60_105),
        ("referit", 500, None, 500),
        ("unc", 10_834, None, 10_834),
        ("unc", 10_834, 3_000, 3_000),
        ("unc", 7, 8, 7),
        ("unc", 7, 1, 1),
    ],
)
def test_how_many_expressions_are_judged(dataset, number, limit, expected):
    part = judged(Counted(dataset, number), limit)
    assert len(part) == expected
    if isinstance(part, list) and expected > 1:  # from the first to the last, in even steps
        steps = np.diff(part)
        assert (part[0], part[-1]) == (0, number - 1) and steps.max() - steps.min() <= 1 <= steps.min()


def test_a_part_of_a_split_is_judged_as_the_whole(batches):
    """Its metrics are those of its expressions in a whole evaluation."""
    whole, model = PreparedSplit(batches, "val"), tiny_model()
    scores = evaluate(model, whole, progress=False)
    part = whole.select([17, 2, 3, 11])
    assert [part.name(i) for i in range(len(part))] == [f"Gref_val_{i}" for i in (17, 2, 3, 11)]
    found = evaluate(model, part, progress=False)
    assert [score.index for score in found] == [0, 1, 2, 3]
    for score, i in zip(found, (17, 2, 3, 11), strict=True):
        assert replace(score, index=i) == scores[i]
    again = part.select([3, 0])  # of a part
    assert [again.text(i)[1:] for i in (0, 1)] == [whole.text(i)[1:] for i in (11, 17)]
    assert len(whole.image_groups()[0]) > 1 and sorted(sum(part.image_groups(), [])) == [0, 1, 2, 3]
    assert summarise(found, "Gref")["n_samples"] == 4


def test_a_run_keeps_to_the_part_that_it_began_with(batches, tmp_path):
    """Without the flag; a run of version 1.0, whose state does not say, to all."""
    folder, more = tmp_path / "run", ("--resume", "--allow_changes", "--num_steps")

    def judged_at(step):
        return state(folder, f"Gref_{step}.pth")["metrics"]["n_samples"]

    assert train(batches, folder, "--val_limit", "7", "--num_steps", "4")[0] == 0
    names = [f"Gref_val_{int(i)}" for i in np.linspace(0, 19, 7)]
    scores = evaluate(load_restr(folder / "Gref_4.pth", "cpu"), PreparedSplit(batches, "val"), progress=False)
    expected = summarise([score for score in scores if score.name in names], "Gref")
    assert state(folder, "Gref_4.pth")["metrics"]["oIoU"] == pytest.approx(expected["oIoU"])
    assert "--val_limit 7, not 6" in refused(batches, folder, "--val_limit", "6", "--num_steps", "4", "--resume")
    assert train(batches, folder, *more, "8")[0] == 0
    assert (judged_at(4), judged_at(8)) == (7, 7)
    old = state(folder)
    del old["training"]["options"]["val_limit"]
    torch.save(old, folder / "last.pth")
    for steps in ("12", "16"):
        assert train(batches, folder, *more, steps)[0] == 0
    assert (judged_at(12), judged_at(16)) == (20, 20)
    old["training"]["options"]["val_limit"] = "many"
    for name in ("last.pth", "last.prev.pth"):
        torch.save(old, folder / name)
    assert "cannot be continued" in refused(batches, folder, "--num_steps", "8", "--resume")


def test_overfit_trains_and_validates_on_the_first_expressions(batches, tmp_path):
    options = parse_options("", ["--data_dir", str(batches), "--overfit", "3"])
    split, valsets, _ = open_folders(options.data)
    for part in (split, valsets["Gref"]):
        assert [part.name(i) for i in range(len(part))] == [f"Gref_train_{i}" for i in range(3)]
    options.data.overfit = 21
    with pytest.raises(InputError, match="--overfit 21: .* has 20 expressions in train; give fewer"):
        open_folders(options.data)
    more = ("--num_steps", "120", "--save_every", "60", "--alpha_loc", "1", "--drop_path", "0")
    assert train(batches, tmp_path / "run", "--overfit", "2", *more)[0] == 0
    (first, last) = (line for line in records(tmp_path / "run") if line["kind"] == "val")
    assert last["oIoU"] > 60 and state(tmp_path / "run", "best.pth")["metrics"]["n_samples"] == 2


def test_the_trial_changes_nothing(batches, tmp_path):
    flags = ("--num_steps", "4")
    assert train(batches, tmp_path / "with", *flags)[0] == train(batches, tmp_path / "without", *flags, "--no_check")[0]
    assert equal(outcome(tmp_path / "with"), outcome(tmp_path / "without"))
    said = [Path(tmp_path / f"{name}.out").read_text() for name in ("with", "without")]
    assert ["two images judged, a checkpoint written and read back" in text for text in said] == [True, False]


def trial(batches, folder, *flags):
    """A run before its first step, in this process."""
    folder.mkdir()
    options = parse_options("", arguments(batches, folder, *flags, base=[*FLAGS, "--num_workers", "1"]))
    split, valsets, vocabulary = open_folders(options.data)
    options.data.input_size = (48, 48)
    model, _ = train_restr.build_model(
        options, options.model.config((48, 48), len(vocabulary)), split, vocabulary, False
    )
    trainer = train_restr.build_trainer(options, model, ALONE)
    facts = data_of(options.data, split, valsets, vocabulary)
    run = Run(options, ALONE, model, trainer, folder, vocabulary, facts, valsets)
    run.start(False)
    return run


def test_the_trial_leaves_weights_state_random_numbers_and_folder(batches, tmp_path):
    run = trial(batches, tmp_path / "run")
    run.trainer.step, run.trainer.best = 3, 12.5  # as of a run that goes on
    everything = (run.model.state_dict(), run.trainer.state(), torch.get_rng_state(), run.options.values())
    before, training = copy.deepcopy(everything), run.model.training
    files = {file: file.stat().st_size for file in run.path.iterdir() if "tfevents" not in file.name}
    run.check()
    after = (run.model.state_dict(), run.trainer.state(), torch.get_rng_state(), run.options.values())
    assert equal(after, before) and run.model.training is training
    assert {file: file.stat().st_size for file in run.path.iterdir() if "tfevents" not in file.name} == files
    run.log.close()


def test_the_trial_judges_the_first_and_the_last_and_reads_what_it_wrote(batches, tmp_path, monkeypatch):
    run = trial(batches, tmp_path / "run")
    judged_names, read = [], []
    monkeypatch.setattr("train.run.sheet", lambda found: judged_names.append(found.score.name) or found.image)
    monkeypatch.setattr(run, "_load", lambda file: read.append(file.stat().st_size))
    run.check()
    assert judged_names == ["Gref_val_0", "Gref_val_19"] and read[0] > 1e6
    run.log.close()
