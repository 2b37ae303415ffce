"""Each flag of train_restr.py's recipe does what its help says: seen at the model, the optimiser, the loss."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_restr
from models import build_restr
from models.config import DecoderConfig
from models.loss import LossConfig, restr_loss
from tests.support.small_model import CONFIG
from train import run as experiment
from train.options import parse_args
from train.run import OtherRun
from utils.device import Ranks


@pytest.fixture
def parse(monkeypatch):
    """The arguments that a command line gives."""

    def parsed(*flags: str):
        monkeypatch.setattr("sys.argv", ["train_restr.py", "--data_dir", ".", *flags])
        return parse_args("")

    return parsed


def trainer_of(args, config=CONFIG):
    return train_restr.build_trainer(args, build_restr(config), Ranks(torch.device("cpu")))


def test_the_defaults_are_the_paper_s(parse):
    args = parse("--adamW")
    trainer = trainer_of(args)
    assert (args.batch_size, args.num_steps, args.warm_iter, args.save_every) == (8, 400_000, 40_000, 5000)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.base_rates == pytest.approx([1e-5, 1e-6])  # language and fusion; vision
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [5e-4, 5e-4]
    rates = [1e-5 * trainer.schedule.factor(step) for step in (0, 20_000, 40_000, 220_000, 400_000)]
    assert rates == pytest.approx([0, 5e-6, 1e-5, 1e-5 * 0.5**0.9, 0])
    assert (trainer.options.grad_clip, trainer.options.amp) == (0.0, None)


def test_flags_of_optimiser_and_schedule(parse):
    sgd = trainer_of(parse("--momentum", "0.7", "--weight_decay", "0.01", "--lr", "0.2", "--v_lr_scale", "0.5"))
    assert isinstance(sgd.optimizer, torch.optim.SGD)
    groups = sgd.optimizer.param_groups
    assert [(g["momentum"], g["weight_decay"]) for g in groups] == [(0.7, 0.01)] * 2
    assert sgd.base_rates == [0.2, 0.1]
    adam = trainer_of(parse("--adamW", "--weight_decay", "0.01", "--grad_clip", "2", "--amp", "--amp_dtype", "fp16"))
    assert [group["weight_decay"] for group in adam.optimizer.param_groups] == [0.01] * 2
    assert (adam.options.grad_clip, adam.options.amp, adam.scaler.is_enabled()) == (2.0, "fp16", True)
    steps = ("--lr", "0.2", "--num_steps", "110", "--end_lr", "0.05")
    linear, cosine = (trainer_of(parse(*steps, *more)).schedule for more in (("--power", "1"), ("--is_cos",)))
    # warm-up of 11 steps, then from 0.2 to 0.05, half of the way at step 60.5
    assert [0.2 * linear.factor(step) for step in (11, 110)] == pytest.approx([0.2, 0.05])
    assert 0.1 * (linear.factor(60) + linear.factor(61)) == pytest.approx(0.125)
    assert [0.2 * cosine.factor(step) for step in (10, 110)] == pytest.approx([0.2, 0.05])
    assert trainer_of(parse(*steps, "--warm_iter", "4")).schedule.factor(2) == pytest.approx(0.625)  # 0.05 to 0.2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), LossConfig(0.1, "any", 0.8)),
        (("--alpha_loc", "0.5", "--patch_label", "share", "--patch_thres", "0.3"), LossConfig(0.5, "share", 0.3)),
        (("--no_decoder",), LossConfig(None)),
    ],
)
def test_flags_of_the_loss(parse, flags, expected):
    torch.manual_seed(0)
    mask = torch.rand(2, 1, 32, 48) < torch.rand(2, 1, 1, 1)
    outputs = torch.randn(2, 1, 32, 48), torch.randn(2, 1, 2, 3), mask
    losses = trainer_of(parse(*flags)).loss_fn(*outputs)
    assert losses == restr_loss(*outputs, expected)
    assert ("patch" in losses) == ("--no_decoder" not in flags)


def test_flags_of_the_model(parse):
    plain = train_restr.model_config(parse(), 50)
    assert (plain.language.vocabulary_size, plain.vision.image_size) == (50, (480, 480))
    fusion = plain.fusion
    assert (fusion.variant, fusion.layers, fusion.shared, fusion.drop_path) == ("indirect", 2, False, 0.1)
    flags = "--fusion vanilla --tr_n_layers 3 --is_shared --no_decoder --drop_path 0.3 --input_size 64,96"
    other = train_restr.model_config(parse(*flags.split()), 50)
    fusion = other.fusion
    assert (fusion.variant, fusion.layers, fusion.shared, fusion.drop_path) == ("vanilla", 3, True, 0.3)
    assert (other.vision.drop_path, other.vision.image_size, other.decoder) == (0.3, (64, 96), DecoderConfig(False))


def test_words_start_from_the_table_and_padding_from_zero(parse, tmp_path):
    language = CONFIG.language
    table = np.random.default_rng(0).normal(size=(language.vocabulary_size, language.width)).astype(np.float32)
    np.save(tmp_path / "emb.npy", table)
    args = parse("--no_pretrained", "--embeddings", str(tmp_path / "emb.npy"))
    model = train_restr.build_model(args, CONFIG, split=None, resuming=False, ranks=Ranks(torch.device("cpu")))
    table[0] = 0
    assert np.array_equal(model.language.embedding.weight.detach(), table)


def test_validation_follows_its_flags(parse):
    settings = train_restr.eval_settings(parse())
    assert (settings.pad, settings.antialias, settings.batch_size, settings.amp) == ("grey", False, 8, None)
    flags = "--eval_pad black --eval_antialias --eval_batch_size 3 --amp"
    settings = train_restr.eval_settings(parse(*flags.split()))
    assert (settings.pad, settings.antialias, settings.batch_size, settings.amp) == ("black", True, 3, "bf16")


def test_every_flag_is_compared_on_resume_or_harmless(parse):
    groups = [set(experiment.RECIPE), set(experiment.MODEL), set(experiment.DATA), set(experiment.HARMLESS)]
    assert sum(map(len, groups)) == len(set.union(*groups))  # each once
    assert set.union(*groups) == vars(parse()).keys(), "sort new flags into a group of utils/experiment.py"
    assert all(experiment.HARMLESS.values())


CHANGES = {  # flag -> another value than the default
    "adamW is_cos amp tf32 eval_antialias": [],
    "batch_size num_steps warm_iter save_every log_every seed": ["7"],
    "lr v_lr_scale end_lr power weight_decay momentum grad_clip alpha_loc patch_thres": ["0.25"],
    "patch_label": ["share"],
    "eval_pad": ["black"],
    "v_backbone": ["vit_shapes_patch8"],
    "l_backbone": ["transformer_shapes"],
    "fusion": ["vanilla"],
    "tr_n_layers": ["3"],
    "drop_path": ["0.3"],
    "is_shared no_decoder": [],
    "input_size": ["96"],
}


@pytest.mark.parametrize(("name", "values"), [(name, v) for names, v in CHANGES.items() for name in names.split()])
def test_a_changed_flag_is_refused_on_resume(parse, name, values):
    then, now = parse(), parse(f"--{name}", *values)
    saved = {key: getattr(then, key) for key in experiment.RECIPE if key not in experiment.BEFORE}  # as 1.0 wrote it
    state = SimpleNamespace(config=train_restr.model_config(then, 50), vocabulary=None, data={})
    ranks, words = Ranks(torch.device("cpu")), SimpleNamespace(words=None)

    def check(args):
        model = SimpleNamespace(config=train_restr.model_config(args, 50))
        run = experiment.Experiment(args, ranks, model, None, None, words, {})
        run._check_same(Path("last.pth"), state, saved)

    check(then)
    with pytest.raises(OtherRun, match=rf"--{name} |another model"):
        check(now)
    if name in experiment.RECIPE:
        check(parse(f"--{name}", *values, "--allow_changes"))
