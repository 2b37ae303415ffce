"""A run with a text encoder of transformers, from its folder to masks: train, resume, evaluate, predict, export."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from eval import evaluate
from models import load_restr
from models.inference import segment
from tests.support.train_runs import FLAGS, equal, interrupted, outcome, records, refused, state, train
from tools import export_onnx
from train.data import TrainDataset
from utils.prepared import PreparedSplit

pytest.importorskip("transformers")

from tests.support.text_encoders import write_text_encoder

EXPRESSION = "red man, left shirt"


def base(folder) -> list[str]:
    """The flags of a run that starts from the encoder in `folder`."""
    flags = [*FLAGS, "--text_length", "12"]
    flags[flags.index("--l_backbone") + 1] = str(folder)
    return flags


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_text_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


@pytest.fixture(scope="module")
def whole(batches, bert, tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(batches, folder, base=base(bert)) == (0, "")
    return folder


@pytest.fixture(scope="module")
def model(whole):
    return load_restr(whole, "cpu")


def test_each_expression_is_read_by_the_tokeniser(batches, bert, whole, model):
    tokenizer = json.loads((bert / "tokenizer.json").read_text())
    assert json.loads(model.vocabulary) == tokenizer and model.config.language.name == "tiny-bert"
    split = PreparedSplit(batches, "train")
    split.subwords = model.subwords
    dataset, pieces = TrainDataset(split), tokenizer["model"]["vocab"]
    for index in (0, 7, 19):
        ids, words = dataset[index]["ids"], split.text(index)[1].split()
        assert ids.shape == (12,) and ids.dtype == torch.int64
        read = "".join({number + 1: piece for piece, number in pieces.items()}[n] for n in ids[ids != 0].tolist())
        assert read.replace("##", "") == "".join(["[CLS]", *words, "[SEP]"])
    weights = state(whole)["model"]
    start = torch.load(whole / "Gref_4.pth", weights_only=True)["model"]
    changed = [name for name in weights if "language.encoder" in name and not torch.equal(weights[name], start[name])]
    assert changed  # it is trained, too


def test_a_resumed_run_ends_with_the_same_bits(whole, batches, bert, tmp_path):
    assert interrupted(batches, tmp_path / "run", signal.SIGTERM, base=base(bert)) == 75
    assert train(batches, tmp_path / "run", "--resume", base=base(bert)) == (0, "")
    assert equal(outcome(tmp_path / "run"), outcome(whole))
    assert "another model" in refused(batches, tmp_path / "run", "--resume", "--text_length", "13", base=base(bert))


def test_the_folder_may_have_another_name(whole, batches, bert, tmp_path):
    """The encoder is the same: a run goes on with it, and another one starts from the weights of the first."""
    copy = shutil.copytree(bert, tmp_path / "copy")
    shutil.copytree(whole, tmp_path / "run")
    assert train(batches, tmp_path / "run", "--resume", base=base(copy)) == (0, "")
    still = ("--start_from", str(whole), "--num_steps", "1", "--warm_iter", "1")  # at rate 0
    flags = [flag for flag in base(copy) if flag != "--no_pretrained"]
    assert train(batches, tmp_path / "on", *still, base=flags) == (0, "")
    before, after = state(whole, "best.pth"), state(tmp_path / "on")
    assert equal(before["model"], after["model"]) and before["vocabulary"] == after["vocabulary"]
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["r"], vocabulary["s"] = vocabulary["s"], vocabulary["r"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused(batches, tmp_path / "other", *still, base=flags)
    assert "another tokeniser" in message and not (tmp_path / "other").exists()
    assert "another model" in refused(batches, tmp_path / "run", "--resume", base=base(copy))


@pytest.mark.slow
def test_the_loss_falls(batches, bert, tmp_path):
    flags = ("--num_steps", "40", "--save_every", "40", "--alpha_loc", "1")
    assert train(batches, tmp_path / "run", *flags, base=base(bert))[0] == 0
    losses = [line["loss"] for line in records(tmp_path / "run") if line["kind"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_evaluation_gives_the_scores_of_validation(whole, batches, bert, tmp_path):
    common = ["--data_dir", batches, "--set", "val", "--num_workers", "0", "--device", "cpu", "--output_dir", tmp_path]
    evaluate.main([*map(str, common), "--checkpoint", str(whole), "--l_backbone", "other/tiny-bert"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["oIoU"] == pytest.approx(state(whole, "best.pth")["metrics"]["oIoU"])
    for name in ("transformer_glove", "bert-base-uncased"):
        with pytest.raises(ValueError, match=f"--l_backbone {name} .it has tiny-bert"):
            evaluate.main([*map(str, common), "--checkpoint", str(whole), "--l_backbone", name])


def test_prediction_and_the_onnx_file_give_the_mask_of_segment(whole, model, tmp_path, capsys):
    size = 48
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = segment(model, pixels, EXPRESSION)
    long = "the man in the red shirt on the left near a man in a zebra shirt"
    texts = ["--text", EXPRESSION, long, "--out", tmp_path / "out", "--device", "cpu"]
    predict.main([*map(str, ["--checkpoint", whole, "--image", tmp_path / "a.png", *texts])])
    mask = np.asarray(Image.open(tmp_path / "out/a-red_man_left_shirt_mask.png")) > 0
    assert np.array_equal(mask, expected.mask)
    assert "zebra shirt" in capsys.readouterr().out.split("not: ")[1]

    runtime, tokenizers = pytest.importorskip("onnxruntime"), pytest.importorskip("tokenizers")
    export_onnx.main(["--checkpoint", str(whole), "--out", str(tmp_path / "a.onnx")])
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer"])
    found = [number + 1 for number in tokenizer.encode(EXPRESSION).ids]
    ids = np.array([found + [0] * (int(about["text_length"]) - len(found))])
    logits, _ = session.run(None, {"image": pixels.transpose(2, 0, 1)[None], "ids": ids})
    np.testing.assert_allclose(logits[0, 0], expected.logits, rtol=0, atol=1e-4)
    assert "tokenizer" in about["text"] and "vocabulary" not in about


def test_its_parameters_are_counted(batches, bert, model, capsys, monkeypatch):
    import train_restr

    arguments = ["train_restr.py", "--data_dir", str(batches), *base(bert), "--print_model"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr("tools.model_size.step_memory", lambda *_, **__: 1e9)  # see its own tests
    assert train_restr.main() == 0
    rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:-1])
    assert int(rows["language"].replace(",", "")) == sum(weight.numel() for weight in model.language.parameters())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--random_embeddings"], "has its embeddings"),
        (["--embeddings", "a.npy"], "has its embeddings"),
        (["--text_length", "31"], "at most 30 tokens"),
        (["--l_backbone", "transformer_shapes"], "--text_length is for text encoders"),
        (["--l_backbone", "no/such/folder"], "no/such/folder: no folder"),
    ],
)
def test_flags_that_do_not_go_together(batches, bert, tmp_path, flags, says):
    assert says in refused(batches, tmp_path / "run", *flags, base=base(bert))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_tokeniser_leaves_nothing(batches, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in refused(batches, tmp_path / "run", base=base(folder))
    assert not (tmp_path / "run").exists()
