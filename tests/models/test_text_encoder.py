"""Text encoders of transformers as language encoder: features, checkpoints, and files from strangers."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import load_restr
from models.checkpoint import Checkpoint, checkpoint_values, read_checkpoint, save_checkpoint
from models.inference import segment
from models.language import TEXT_ENCODERS, TextEncoder
from models.reference import to_reference
from models.restr import check_weights
from tests.support.hostile import refused
from tests.support.small_model import CONFIG, outputs, tiny_model
from utils.errors import InputError
from utils.hub import write_files
from utils.subwords import Subwords

transformers = pytest.importorskip("transformers")

from tests.support.text_encoders import TEXTS, write_text_encoder
from tools import push_to_hub
from train.text_encoder import load_text_encoder, read_text_encoder, read_tokeniser

EXPRESSIONS = ["Red", "the man in the red shirt", f"{TEXTS[1]} {TEXTS[0]}"]  # the last is too long


def loaded(folder, length: int = 20) -> tuple[TextEncoder, Subwords]:
    """The encoder of a folder with its weights, and its tokeniser."""
    config = read_text_encoder(str(folder), length)
    encoder = TextEncoder(config, 24)
    load_text_encoder(encoder, str(folder))
    return encoder, read_tokeniser(str(folder), config)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_text_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


def saved(kind: str, folder):
    """A checkpoint of a ReSTR with a text encoder, whose folder is gone, and the model."""
    name = str(write_text_encoder(folder / kind, kind))
    model = tiny_model(language=read_text_encoder(name, 12))
    load_text_encoder(model.language, name)
    words = read_tokeniser(name, model.config.language).words
    shutil.rmtree(name)
    save_checkpoint(folder / "a.pth", Checkpoint(model.state_dict(), model.config, words, {"dataset": "unc"}))
    return folder / "a.pth", model


@pytest.fixture(scope="module", params=["BertModel", "CLIPTextModel", "SiglipTextModel"])
def whole(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The checkpoint with a BERT."""
    return saved("BertModel", tmp_path_factory.mktemp("encoders"))[0]


@pytest.mark.parametrize("kind", TEXT_ENCODERS)
def test_features_equal_those_of_transformers_one_expression_at_a_time(kind, tmp_path):
    folder = write_text_encoder(tmp_path / "encoder", kind)
    encoder, subwords = loaded(folder)
    theirs = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="pad")
    ids = torch.from_numpy(np.stack([subwords.ids(each) for each in EXPRESSIONS]))
    assert ids.shape == (3, 20) and (ids[-1] != 0).all()
    features = encoder.train()(ids)  # in a batch, padded, as in training
    for row, expression, ours in zip(ids, EXPRESSIONS, features, strict=True):
        plain = tokenizer(expression, truncation=True, max_length=20, return_tensors="pt").input_ids
        n = plain.shape[1]
        assert row.tolist() == [*(plain[0] + 1).tolist(), *[0] * (20 - n)]
        if kind.startswith("Siglip"):  # trained on padding, and without a mask
            plain = torch.nn.functional.pad(plain, (0, 20 - n), value=theirs.config.pad_token_id)
        with torch.no_grad():
            expected = encoder.norm(encoder.proj(theirs(input_ids=plain).last_hidden_state[0, :n]))
        torch.testing.assert_close(ours[:n], expected, rtol=0, atol=2e-5)
    features.sum().backward()  # each parameter has a gradient, as processes that train together need it
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(("both", "text"), [("CLIPModel", "CLIPTextModel"), ("SiglipModel", "SiglipTextModel")])
def test_of_a_model_of_images_and_text_it_is_the_text_encoder(both, text, tmp_path):
    folder = write_text_encoder(tmp_path / "text", text)
    known, settings = getattr(transformers, both), json.loads((folder / "config.json").read_text())
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    model = known(known.config_class(text_config=settings, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(tmp_path / "both")
    shutil.copy(folder / "tokenizer.json", tmp_path / "both")
    encoder, subwords = loaded(tmp_path / "both")
    ids = torch.from_numpy(subwords.ids(EXPRESSIONS[2]))[None]
    expected = model.text_model(input_ids=ids - 1).last_hidden_state
    torch.testing.assert_close(encoder.encoder(input_ids=ids - 1).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_a_checkpoint_needs_neither_folder_nor_network(whole, monkeypatch):
    path, model = whole
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    read = load_restr(path, "cpu")
    assert read.config == model.config and type(read.subwords) is Subwords
    ids = torch.from_numpy(np.stack([read.subwords.ids(each) for each in EXPRESSIONS]))
    image = torch.randint(0, 256, (3, 3, *model.image_size), dtype=torch.uint8)
    with torch.no_grad():
        for ours, theirs in zip(read(image, ids), model(image, ids), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(outputs(load_restr(path, "cpu")), outputs(model))
    refused(to_reference, read)


def test_the_files_of_the_hub_give_the_same_bits(whole, tmp_path):
    """The tokeniser, too; a vocabulary of the model that was there before goes."""
    path, model = whole
    words = torch.load(path, weights_only=True)["vocabulary"]
    (tmp_path / "vocabulary.txt").write_text("<pad>\n")
    write_files(tmp_path, checkpoint_values(read_checkpoint(path)))
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert (tmp_path / "tokenizer.json").read_bytes() == words.encode()
    read = load_restr(tmp_path, "cpu")
    assert (read.vocabulary, read.config, read.provenance["data"]) == (words, model.config, {"dataset": "unc"})
    for text in EXPRESSIONS:
        assert read.subwords.ids(text).tolist() == Subwords(words, 12, len(words)).ids(text).tolist()
    theirs = model.state_dict()
    assert read.state_dict().keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in read.state_dict().items())


def test_padding_and_other_expressions_do_not_change_the_logits(whole):
    """But of SigLIP, which was trained so that padding counts, only other expressions do not."""
    model = load_restr(whole[0], "cpu")
    short, long = (torch.from_numpy(model.subwords.ids(text)) for text in EXPRESSIONS[1:])
    v = torch.randn(1, 24, 24)
    with torch.no_grad():
        alone = model.segment_features(v, model.encode_text(short[None]), short[None])[0]
        ids = torch.stack([long, short])
        both = model.segment_features(v.expand(2, -1, -1), model.encode_text(ids), ids)[0]
        n = int((short != 0).sum())
        cut = model.segment_features(v, model.encode_text(short[None, :n]), short[None, :n])[0]
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(both[:1], alone, atol=1e-3)
    assert short[n:].eq(0).all() and cut.shape == alone.shape


def test_segment_names_the_tokens_that_were_read(whole):
    model = load_restr(whole[0], "cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    short, long = segment(model, image, ["Red shirt", EXPRESSIONS[2]])
    assert "Redshirt" in "".join(word for word, _ in short.words)
    assert (short.unread, short.unknown) == ([], [])
    assert 0 < sum(share for _, share in short.words) < 1
    assert len(long.words) == 12 and long.unread[-2:] == ["a", "zebra"]
    assert np.array_equal(long.logits, segment(model, image, EXPRESSIONS[2]).logits)


def test_the_text_encoder_learns_as_slowly_as_the_vision_encoder(whole):
    model = whole[1]
    rest, slow = model.parameter_groups(1.0, 0.1)
    encoders = [*model.vision.parameters(), *model.language.encoder.parameters()]
    assert {id(weight) for weight in slow["params"]} == {id(weight) for weight in encoders}
    assert len(rest["params"]) + len(slow["params"]) == len([*model.parameters()])
    assert (rest["lr"], slow["lr"]) == (1.0, 0.1)


WRONG = {
    "class": {"encoder": "TimmWrapperModel"},
    "no class": {"encoder": "\x1b[2J" + 9_000 * "é", "name": "\x1b[2J" + 9_000 * "é"},
    "not JSON": {"settings": "{" * 100_000},
    "list": {"settings": "[]"},
    "endless": {"settings": {"num_hidden_layers": 10**6}},
    "large": {"settings": {"hidden_size": 10**9}},
    "another": {"settings": {"hidden_size": 15}},
    "activation": {"settings": {"hidden_act": "os.system"}},
    "kind of number": {"settings": {"num_attention_heads": "2"}},
    "padding": {"settings": {"pad_token_id": -1}},
    "few positions": {"settings": {"max_position_embeddings": 10}},
    "vocabulary": {"vocabulary_size": 1},
    "length": {"text_length": 10**6},
    "type": {"encoder": None},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_in_a_file_is_refused(case, file, tmp_path):
    values, changes = torch.load(file, weights_only=True), WRONG[case]
    language = values["config"]["language"]
    if type(changes.get("settings")) is dict:
        changes = {"settings": json.dumps({**json.loads(language["settings"]), **changes["settings"]})}
    language.update(changes)
    torch.save(values, tmp_path / "a.pth")
    assert refused(load_restr, tmp_path / "a.pth", "cpu").startswith(str(tmp_path / "a.pth"))


def test_settings_that_name_code_are_not_read(file, monkeypatch):
    """transformers loads kernels and classes of the hub that a configuration names."""
    model = load_restr(file, "cpu")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    settings = json.loads(model.config.language.settings)
    names = ("_attn_implementation", "attn_implementation", "_name_or_path", "dtype", "quantization_config")
    hostile = settings | dict.fromkeys(names, "evil/kernel") | {"auto_map": {"AutoModel": "evil--code.Model"}}
    config = replace(model.config.language, settings=json.dumps(hostile))
    check_weights(replace(model.config, language=config), model.state_dict())
    assert TextEncoder(config, 24).encoder.config._attn_implementation == "sdpa"


def test_a_wrong_tokeniser_in_a_file_is_refused(file, tmp_path):
    values = torch.load(file, weights_only=True)
    other = json.loads(values["vocabulary"])
    other["model"]["vocab"]["red"] = 5_000
    for words in (None, ["<pad>"], "", "{}", "\ud800", "[" * 100_000, json.dumps(other), values["vocabulary"][:-9]):
        torch.save({**values, "vocabulary": words}, tmp_path / "a.pth")
        assert "tokeniser" in refused(load_restr, tmp_path / "a.pth", "cpu")
    with pytest.raises(InputError, match="vocabulary"):
        save_checkpoint(tmp_path / "b.pth", Checkpoint({}, CONFIG, values["vocabulary"]))
        Subwords(values["vocabulary"], 20, 5, "b.pth")


def test_push_to_hub_writes_a_card_of_it_and_refuses_a_damaged_one(file, tmp_path):
    def push(path):
        push_to_hub.main([*map(str, ["--checkpoint", path, "--repo", "me/shapes", "--out", tmp_path / path.stem])])

    push(file)
    card = (tmp_path / "a/README.md").read_text()
    assert "BertModel" in card and "requirements-text.txt" in card and "words" not in card
    values = torch.load(file, weights_only=True)
    torch.save({**values, "vocabulary": values["vocabulary"][:-9]}, tmp_path / "cut.pth")
    assert "tokeniser" in refused(push, tmp_path / "cut.pth") and not (tmp_path / "cut").exists()


def test_what_a_folder_lacks_is_named(bert, tmp_path):
    config = read_text_encoder(str(bert), 20)

    def copy(name: str):
        return shutil.copytree(bert, tmp_path / name)

    (copy("no-tokeniser") / "tokenizer.json").unlink()
    assert "save_pretrained" in refused(read_tokeniser, str(tmp_path / "no-tokeniser"), config)
    (copy("no-weights") / "model.safetensors").rename(tmp_path / "no-weights/pytorch_model.bin")
    assert "no-weights" in refused(load_text_encoder, TextEncoder(config, 24), str(tmp_path / "no-weights"))
    (copy("cut") / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:-1000])
    assert "cut" in refused(load_text_encoder, TextEncoder(config, 24), str(tmp_path / "cut"))
    (copy("empty") / "config.json").write_text("{}")
    assert "empty" in refused(read_text_encoder, str(tmp_path / "empty"), 20)
    known = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1)
    known.save_pretrained(copy("other"))
    assert "gpt2 is none of BertModel" in refused(
        lambda: TextEncoder(read_text_encoder(str(tmp_path / "other"), 20), 8)
    )
    theirs = transformers.BertModel.from_pretrained(bert)
    del theirs.encoder.layer[1].output.dense
    theirs.save_pretrained(copy("part"))
    assert "2 tensors" in refused(load_text_encoder, TextEncoder(config, 24), str(tmp_path / "part"))


def test_code_beside_the_weights_is_not_run(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    values = json.loads((folder / "config.json").read_text())
    for kind in ("bert", "evil"):
        classes = {"AutoConfig": "evil.C", "AutoModel": "evil.C"}
        (folder / "config.json").write_text(json.dumps({**values, "model_type": kind, "auto_map": classes}))
        if kind == "bert":
            loaded(folder)
        else:
            refused(read_text_encoder, str(folder), 20)
    assert not (tmp_path / "ran").exists()


def test_names_on_the_hub(bert, monkeypatch):
    asked = {}

    def download(name, allow_patterns, **_):
        asked[name] = allow_patterns
        return str(bert)

    monkeypatch.setattr("train.text_encoder.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("train.text_encoder.snapshot_download", download)
    config = read_text_encoder("some-one/tiny", 20)
    assert (config.name, config.encoder) == ("some-one/tiny", "BertModel")
    assert list(asked) == ["some-one/tiny"] and not any(
        "bin" in name or "py" in name for name in asked["some-one/tiny"]
    )

    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("train.text_encoder.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("train.text_encoder.snapshot_download", lambda *_, **__: pytest.fail("tried for half a minute"))
    assert "not available on the hub (Name or service" in refused(read_text_encoder, "some-one/other", 20)
    assert refused(read_text_encoder, "transformer_glvoe", 20).endswith("did you mean transformer_glove?")


def test_without_the_packages_their_list_is_named(file, bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for read in (lambda: load_restr(file, "cpu"), lambda: read_text_encoder(str(bert), 20)):
        assert refused(read).endswith("pip install -r requirements-text.txt")
