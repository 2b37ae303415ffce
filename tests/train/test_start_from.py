"""--start_from: the first weights of a new run are those of a trained model, its words' rows by word."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models.checkpoint
from models import build_restr, to_reference
from models.checkpoint import Checkpoint, save_checkpoint
from models.config import DecoderConfig, FusionConfig, LanguageConfig
from prepare.writer import BuildOptions, build
from tests.support.small_model import CONFIG, REFERENCE, WORDS, outputs, tiny_model, write_checkpoint
from tests.support.tiny_set import VOCABULARY, edit_refs, make_tiny_set
from tests.support.train_runs import FLAGS, equal, records, refused, state, train
from train.options import parse_options
from train.start_from import start_from
from utils.errors import InputError
from utils.text import SPECIAL_WORDS, Vocabulary

TABLE = "language.embedding.weight"
NEW = Vocabulary([*SPECIAL_WORDS, "new", "w9", "w4", "old", "w29", *(f"more{i}" for i in range(500))])
POSITIONS = "vision.backbone.pos_embed"


def begun(file, vocabulary=NEW, embeddings=None, seed=1, **parts):
    """The weights of a model for `vocabulary` that starts from `file`, and what is said of them."""
    language = replace(CONFIG.language, vocabulary_size=len(vocabulary))
    model = build_restr(replace(CONFIG, **{"language": language, **parts}))
    said = start_from(model, file, vocabulary, embeddings, seed)
    return model.state_dict(), said


@pytest.mark.parametrize("table", [False, True])
def test_rows_go_by_word_and_all_else_as_it_is(tmp_path, table):
    write_checkpoint(tmp_path / "a.pth")
    old, rng = state(tmp_path, "a.pth")["model"], np.random.default_rng(0)
    glove = rng.normal(size=(len(NEW), CONFIG.language.width)).astype(np.float32)
    np.save(tmp_path / "emb.npy", glove)
    new, said = begun(tmp_path / "a.pth", embeddings=tmp_path / "emb.npy" if table else None)
    rows, unknown = new.pop(TABLE), []
    for row, word in zip(rows, NEW.words, strict=True):
        if word in WORDS:
            assert torch.equal(row, old[TABLE][WORDS.index(word)])
        else:
            unknown.append(row)
    if table:
        assert np.array_equal(torch.stack(unknown), glove[[word not in WORDS for word in NEW.words]])
    else:  # 502 draws for each channel
        known = old[TABLE][1:].double().numpy()
        drawn = torch.stack(unknown).double().numpy()
        mean, spread = known.mean(0), known.std(0, ddof=1)
        assert (abs(drawn.mean(0) - mean) < 4 * spread / 502**0.5).all() and len(np.unique(drawn)) > 6000
        assert (abs(drawn.std(0) / spread - 1) < 4 / (2 * 502) ** 0.5).all()
    assert equal(new, {name: value for name, value in old.items() if name != TABLE})
    source = f"from {tmp_path / 'emb.npy'}" if table else "drawn"
    assert said == f"{tmp_path / 'a.pth'}; words: 7 carried over, 502 {source}"


def test_new_words_are_drawn_by_the_seed(tmp_path):
    write_checkpoint(tmp_path / "best.pth")
    first, again, other = (begun(tmp_path, seed=seed)[0][TABLE] for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first[4], other[4])
    assert torch.equal(first[5], other[5])  # w9


def test_positions_are_resampled_to_another_size(tmp_path):
    write_checkpoint(tmp_path / "a.pth")
    old = state(tmp_path, "a.pth")["model"][POSITIONS]
    new = begun(tmp_path / "a.pth", vision=replace(CONFIG.vision, image_size=(64, 40)))[0][POSITIONS]
    grid = old[:, 1:].reshape(1, 4, 6, -1).permute(0, 3, 1, 2)  # the class token has the first
    resized = F.interpolate(grid, (8, 5), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 40, -1)
    torch.testing.assert_close(new, torch.cat([old[:, :1], resized], 1))


def test_a_file_of_the_authors_code_has_the_words_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(models.checkpoint, "reference_config", lambda names, shared: REFERENCE)
    trained = tiny_model()
    torch.save(to_reference(trained), tmp_path / "unc_500.pth")
    model = build_restr(CONFIG)
    start_from(model, tmp_path / "unc_500.pth", Vocabulary(WORDS), None, 1)
    assert torch.equal(outputs(model.eval()), outputs(trained))
    with pytest.raises(InputError, match="does not say which its 30 words are.*models.convert"):
        begun(tmp_path / "unc_500.pth")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (r"fusion variant indirect, not vanilla\)", {"fusion": FusionConfig("vanilla", heads=2)}),
        ("layers 2, not 3; fusion shared False, not True", {"fusion": FusionConfig(layers=3, heads=2, shared=True)}),
        ("fusion heads 2, not 4", {"fusion": FusionConfig(heads=4)}),
        ("vision backbone vit_tiny.*, not deit", {"vision": replace(CONFIG.vision, backbone="deit_tiny_patch16_224")}),
        ("vision width 24, not 48", {"vision": replace(CONFIG.vision, width=48)}),
        ("language width 12, not 24", {"language": LanguageConfig(len(NEW), width=24, depth=1, heads=2)}),
        ("decoder enabled True, not False", {"decoder": DecoderConfig(False)}),
    ],
)
def test_another_model_is_one_line(tmp_path, words, parts):
    write_checkpoint(tmp_path / "a.pth")
    with pytest.raises(InputError, match=f"a.pth: another model .*{words}"):
        begun(tmp_path / "a.pth", **parts)


def test_the_number_of_heads_may_be_said_or_not(tmp_path):
    """As `reference_config` says it, and ours does not."""
    write_checkpoint(tmp_path / "a.pth")
    begun(tmp_path / "a.pth", fusion=FusionConfig(heads=None, drop_path=0.4))


def test_a_diverged_model_and_foreign_words_are_refused(tmp_path):
    weights = tiny_model().state_dict()
    save_checkpoint(tmp_path / "words.pth", Checkpoint(weights, CONFIG, ["x", *WORDS[1:]]))
    weights["fusion.norm.bias"][0] = float("inf")
    save_checkpoint(tmp_path / "inf.pth", Checkpoint(weights, CONFIG, WORDS))
    for name, words in (
        ("inf", "not finite"),
        ("words", "does not begin with <pad>"),
        ("none", "no such file|none.pth"),
    ):
        with pytest.raises(InputError, match=words):
            begun(tmp_path / f"{name}.pth")


@pytest.mark.parametrize("flags", ["--no_pretrained", "--v_weights b.pth", "--random_embeddings"])
def test_two_sources_of_weights_contradict(flags):
    parse_options("", ["--data_dir", ".", "--start_from", "a.pth"])
    with pytest.raises(InputError, match=f"--start_from and {flags.split()[0]} contradict"):
        parse_options("", ["--data_dir", ".", "--start_from", "a.pth", *flags.split()])


@pytest.fixture
def other_words(tmp_path):
    """The toy set with other words for two of its own, in another order, and one more."""
    root = make_tiny_set(tmp_path / "set")

    def change(refs):
        for sentence in (sentence for ref in refs for sentence in ref["sentences"]):
            sentence["sent"] = sentence["raw"] = sentence["sent"].replace("man", "person").replace("shirt", "coat")

    edit_refs(root, change)
    words = [*SPECIAL_WORDS, "person", "coat", "small", *reversed(VOCABULARY[4:])]
    (root / "data/vocabulary_Gref.txt").write_text("".join(f"{word}\n" for word in words))
    for split in ("train", "val"):
        folder = build(BuildOptions(root, "Gref", split, (48, 48), workers=1)).folder
    return folder


def test_a_run_starts_from_a_lower_loss_than_from_scratch(batches, other_words, tmp_path):
    """Of one step at rate 0 of all samples, which leaves the weights as they are."""
    base = [flag for flag in FLAGS if flag != "--no_pretrained"]
    one = ("--num_steps", "1", "--warm_iter", "1", "--batch_size", "20", "--alpha_loc", "1")
    more = ("--num_steps", "60", "--save_every", "60", "--warm_iter", "0", "--alpha_loc", "1")
    assert train(batches, tmp_path / "trained", *more)[0] == 0
    source = ("--start_from", str(tmp_path / "trained"))
    assert train(other_words, tmp_path / "scratch", *one)[0] == 0
    assert train(other_words, tmp_path / "on", *one, *source, base=base) == (0, "")
    scratch, on = (records(tmp_path / name)[0]["loss"] for name in ("scratch", "on"))
    assert on < 0.8 * scratch
    before, after = state(tmp_path / "trained", "best.pth"), state(tmp_path / "on")
    for word, row in zip(after["vocabulary"], after["model"][TABLE], strict=True):
        known = word in before["vocabulary"]
        assert known != (word in ("person", "coat", "small"))
        assert not known or torch.equal(row, before["model"][TABLE][before["vocabulary"].index(word)])
    config = json.loads((tmp_path / "on/config.json").read_text())
    assert config["flags"]["start_from"] == str(tmp_path / "trained")
    assert config["weights"] == f"{tmp_path / 'trained/best.pth'}; words: 11 carried over, 3 drawn"
    (tmp_path / "trained/best.pth").unlink()
    assert train(other_words, tmp_path / "on", *one, *source, "--resume", base=base) == (0, "")  # needs it no more
    assert "best.pth" in refused(other_words, tmp_path / "again", *one, *source, base=base)
    assert not (tmp_path / "again").exists()
