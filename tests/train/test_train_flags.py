"""Each flag of train_restr.py's recipe does what its help says: seen at the model, the optimiser, the loss."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_restr
from models import build_restr
from models.inference import THRESHOLD
from models.loss import LossConfig, restr_loss
from tests.conftest import DATA
from tests.support.small_model import CONFIG
from train.options import FLAGS, Validation, parse_options
from train.run import OtherRun, Run
from utils.device import Ranks
from utils.errors import InputError

ALONE = Ranks(torch.device("cpu"))


def parse(*flags: str):
    """The options that a command line gives."""
    return parse_options("", ["--data_dir", ".", *flags])


def trainer_of(options, config=CONFIG):
    return train_restr.build_trainer(options, build_restr(config), ALONE)


def config_of(options, words=50):
    return options.model.config(options.data.input_size or (480, 480), words)


def test_the_defaults_are_the_paper_s():
    options = parse("--adamW")
    trainer, recipe = trainer_of(options), options.recipe
    assert (recipe.batch_size, recipe.num_steps, recipe.warm_iter, options.run.save_every) == (8, 400_000, 40_000, 5000)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.base_rates == pytest.approx([1e-5, 1e-6])  # language and fusion; vision
    assert [(g["betas"], g["weight_decay"]) for g in trainer.optimizer.param_groups] == [((0.9, 0.999), 5e-4)] * 2
    rates = [1e-5 * recipe.lr_factor(step) for step in (0, 20_000, 40_000, 220_000, 400_000)]
    assert rates == pytest.approx([0, 5e-6, 1e-5, 1e-5 * 0.5**0.9, 0])
    assert (recipe.seed, recipe.grad_clip, trainer.amp) == (1, 0.0, None)


def test_modes_of_compile():
    assert parse("--compile", "--adamW").machine.compile == "default"
    assert parse("--compile", "reduce-overhead").machine.compile == "reduce-overhead"
    assert parse("--compile", "--accum", "2").recipe.accum == 2
    with pytest.raises(InputError, match="--compile max-autotune cannot add up gradients"):
        parse("--compile", "max-autotune", "--accum", "2")


def test_flags_of_optimiser_and_schedule():
    sgd = trainer_of(parse("--momentum", "0.7", "--weight_decay", "0.01", "--lr", "0.2", "--v_lr_scale", "0.5"))
    assert isinstance(sgd.optimizer, torch.optim.SGD)
    groups = sgd.optimizer.param_groups
    assert [(g["momentum"], g["weight_decay"]) for g in groups] == [(0.7, 0.01)] * 2
    assert sgd.base_rates == [0.2, 0.1]
    adam = trainer_of(parse("--adamW", "--weight_decay", "0.01", "--grad_clip", "2", "--amp", "--amp_dtype", "fp16"))
    assert [group["weight_decay"] for group in adam.optimizer.param_groups] == [0.01] * 2
    assert (adam.recipe.grad_clip, adam.amp, adam.scaler.is_enabled()) == (2.0, "fp16", True)
    steps = ("--lr", "0.2", "--num_steps", "110", "--end_lr", "0.05")
    linear, cosine = (parse(*steps, *more).recipe.lr_factor for more in (("--power", "1"), ("--is_cos",)))
    # warm-up of 11 steps, then from 0.2 to 0.05, half of the way at step 60.5
    assert [0.2 * linear(step) for step in (11, 110)] == pytest.approx([0.2, 0.05])
    assert 0.1 * (linear(60) + linear(61)) == pytest.approx(0.125)
    assert [0.2 * cosine(step) for step in (10, 110)] == pytest.approx([0.2, 0.05])
    assert parse(*steps, "--warm_iter", "4").recipe.lr_factor(2) == pytest.approx(0.625)  # 0.05 to 0.2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), LossConfig(0.1, "any", 0.8)),
        (("--alpha_loc", "0.5", "--patch_label", "share", "--patch_thres", "0.3"), LossConfig(0.5, "share", 0.3)),
        (("--no_decoder",), LossConfig(None)),
    ],
)
def test_flags_of_the_loss(flags, expected):
    outputs = torch.randn(2, 1, 32, 48), torch.randn(2, 1, 2, 3), torch.rand(2, 1, 32, 48) < torch.rand(2, 1, 1, 1)
    losses = trainer_of(parse(*flags)).loss_fn(*outputs)
    assert losses == restr_loss(*outputs, expected)
    assert ("patch" in losses) == ("--no_decoder" not in flags)


MODEL = "--fusion vanilla --tr_n_layers 3 --is_shared --no_decoder --drop_path 0.3 --input-size=64,96"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", ("indirect", 2, False, True, 0.1, 0.1, (480, 480), 50)),
        (MODEL, ("vanilla", 3, True, False, 0.3, 0.3, (64, 96), 50)),
    ],
)
def test_flags_of_the_model(flags, expected):
    config = config_of(parse(*flags.split()))
    fusion, vision = config.fusion, config.vision
    found = fusion.variant, fusion.layers, fusion.shared, config.decoder.enabled, fusion.drop_path, vision.drop_path
    assert (*found, vision.image_size, config.language.vocabulary_size) == expected


def folder_of_the_reference(root: Path, split: str) -> Path:
    """One expression in a folder without meta.json, with an image of 32 x 48."""
    (root / f"unc_batch/{split}_batch").mkdir(parents=True)
    arrays = {"im_batch": np.zeros((32, 48, 3), np.uint8), "mask_batch": np.ones((32, 48), bool)}
    texts = {"text_batch": np.zeros(20, int), "sent_batch": ["red"], "im_name_batch": "1"}
    np.savez(root / f"unc_batch/{split}_batch/unc_{split}_0.npz", **arrays, **texts)
    return root / "unc_batch"


@pytest.mark.parametrize(
    ("folder", "split", "expected"),
    [
        (lambda root: DATA / "v1/Gref_48_batch", "train", (48, 48)),
        (lambda root: folder_of_the_reference(root, "train"), "train", (32, 48)),
        (lambda root: folder_of_the_reference(root, "fold"), "fold", (480, 480)),  # images of their own sizes
    ],
)
@pytest.mark.parametrize("given", [(), ("--input_size", "64,96")])
def test_the_folder_says_the_input_size(folder, split, expected, given, tmp_path, monkeypatch):
    """A value that is given is taken, and compared with the folder's in `check`."""
    words = tmp_path / "words.txt"
    words.write_text("<pad>\n<go>\n<eos>\n<unk>\nred\n")
    own = () if "v1" in (path := str(folder(tmp_path))) else ("--vocabulary", str(words))
    seen = []

    def stop(options, *_):
        seen.append(options.data.input_size)
        raise InterruptedError

    monkeypatch.setattr(train_restr, "check", stop)
    options = parse_options("", ["--data_dir", path, "--set", split, "--valset", split, *own, *given])
    with pytest.raises(InterruptedError):
        train_restr.train(options, ALONE)
    assert seen == [(64, 96) if given else expected]


def test_words_start_from_the_table_and_padding_from_zero(tmp_path):
    language = CONFIG.language
    table = np.random.default_rng(0).normal(size=(language.vocabulary_size, language.width)).astype(np.float32)
    np.save(tmp_path / "emb.npy", table)
    args = parse("--no_pretrained", "--embeddings", str(tmp_path / "emb.npy"))
    model, source = train_restr.build_model(args, CONFIG, None, None, resuming=False)
    table[0] = 0
    assert np.array_equal(model.language.embedding.weight.detach(), table)
    assert source == f"ViT random: --no_pretrained; word embeddings {tmp_path / 'emb.npy'}"


def test_validation_follows_its_flags():
    assert parse().validation == Validation("grey", False, THRESHOLD, 8, None)
    flags = "--eval-pad black --eval_antialias --eval_batch_size=3 --amp"
    assert parse(*flags.split()).validation == Validation("black", True, THRESHOLD, 3, "bf16")


def test_dashes_are_underscores_in_flags_and_stay_in_values():
    assert parse("--exp-name=a-b").run.exp_name == parse("--exp_name", "a-b").run.exp_name == "a-b"


def test_every_flag_is_compared_on_resume_or_harmless():
    reasons = {name: field.metadata["harmless"] for _, name, field in FLAGS}
    assert parse().compared().keys() == {name for name, reason in reasons.items() if not reason}
    by_config = {name for name, reason in reasons.items() if "configuration of the model" in reason}
    changed = {name for names in CHANGES for name in names.split()}
    assert changed | {"mm_fusion", "amp_dtype"} == by_config | parse().compared().keys()  # of one value; see amp
    assert not [reason for reason in reasons.values() if reason and len(reason) < 10]


CHANGES = {  # flag -> another value than the default
    "adamW is_cos amp tf32 eval_antialias": [],
    "batch_size num_steps warm_iter save_every log_every seed": ["7"],
    "lr v_lr_scale end_lr power weight_decay momentum grad_clip alpha_loc patch_thres": ["0.25"],
    "patch_label": ["share"],
    "eval_pad": ["black"],
    "v_backbone": ["vit_shapes_patch8"],
    "l_backbone": ["transformer_shapes"],
    "fusion": ["vanilla"],
    "tr_n_layers no_target_pixels": ["3"],
    "drop_path": ["0.3"],
    "is_shared no_decoder": [],
    "input_size": ["96"],
    "mix": ["3"],
    "overfit val_limit": ["7"],
}


@pytest.mark.parametrize(("name", "values"), [(name, v) for names, v in CHANGES.items() for name in names.split()])
def test_a_changed_flag_is_refused_on_resume(name, values):
    then, now = parse(), parse(f"--{name}", *values)
    saved = {flag: value for flag, value in then.compared().items() if flag != "tf32"}  # as 1.0 wrote it
    state = SimpleNamespace(config=config_of(then), vocabulary=None, data={})

    def check(options):
        model, words = SimpleNamespace(config=config_of(options)), SimpleNamespace(words=None)
        Run(options, ALONE, model, None, None, words, {}, None).check_same(Path("last.pth"), state, saved)

    check(then)
    with pytest.raises(OtherRun, match=rf"--{name} |another model"):
        check(now)
    if name in now.compared():
        check(parse(f"--{name}", *values, "--allow_changes"))


@pytest.mark.parametrize("flags", [(), ("--deterministic",)])
def test_settings_of_pytorch(monkeypatch, flags):
    """cuDNN tries its ways of convolving, unless equal bits are asked; no tensor is filled for nothing."""
    switch, settings = torch.use_deterministic_algorithms, torch.utils.deterministic
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(settings, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr("sys.argv", ["train_restr.py", "--data_dir", ".", "--device", "cpu", *flags])
    seen = lambda *_: (torch.backends.cudnn.benchmark, settings.fill_uninitialized_memory)  # noqa: E731
    monkeypatch.setattr(train_restr, "train", seen)
    try:
        assert train_restr.main() == ((False, False) if flags else (True, True))
        assert torch.are_deterministic_algorithms_enabled() == bool(flags)
    finally:
        switch(False)


def test_gradients_of_1x1_convolutions_have_their_weights_strides():
    """As cuDNN gives them in channels_last, DistributedDataParallel warns at each start."""
    conv, seen = torch.nn.Conv2d(3, 4, 1, bias=False), []
    train_restr.settle_strides(conv)
    conv.weight.register_hook(lambda grad: seen.append(grad.stride()))
    grad = torch.arange(12.0).view(4, 1, 1, 3).permute(0, 3, 1, 2).as_strided((4, 3, 1, 1), (3, 1, 3, 3))
    (conv.weight * 1).backward(grad)
    assert seen == [conv.weight.stride()] == [(3, 1, 1, 1)]
    assert conv.weight.grad.flatten().tolist() == [*range(12)]
