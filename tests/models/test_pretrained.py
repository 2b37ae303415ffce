"""Pre-trained ViT weights: every file layout, resampled positions, and files that are refused."""

import pickle
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from models import pretrained
from models.config import VisionConfig
from models.pretrained import load_pretrained
from models.vision import VisionEncoder, vision_config
from tests.support.hostile import attacks, refused, write

HEADS = 3
SIZE = {"width": 12, "depth": 2, "heads": HEADS}


def config(size=(64, 64), **changes):
    return VisionConfig("vit_tiny_patch16_224", size, **{**SIZE, **changes})


def source(grid=4, **changes):
    """A ViT of timm with an ImageNet head whose every number differs from a fresh one's; its state dict."""
    options = {"embed_dim": 12, "depth": 2, "num_heads": HEADS, "num_classes": 10, **changes}
    model = timm.create_model("vit_tiny_patch16_224", img_size=16 * grid, **options)
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}


def google_arrays(state):
    """The same weights under the names and in the layouts of the original JAX files."""
    numpy = {name: value.numpy() for name, value in state.items()}
    arrays = {
        "embedding/kernel": numpy["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": numpy["patch_embed.proj.bias"],
        "cls": numpy["cls_token"],
        "Transformer/posembed_input/pos_embedding": numpy["pos_embed"],
        "Transformer/encoder_norm/scale": numpy["norm.weight"],
        "Transformer/encoder_norm/bias": numpy["norm.bias"],
        "head/kernel": numpy["head.weight"].T,
        "head/bias": numpy["head.bias"],
    }
    for i in range(sum(name.endswith("attn.qkv.bias") for name in numpy)):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        kernels, biases = numpy[f"{ours}attn.qkv.weight"], numpy[f"{ours}attn.qkv.bias"]
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(12 * j, 12 * (j + 1))
            arrays[f"{attention}{part}/kernel"] = kernels[rows].T.reshape(12, HEADS, 4)
            arrays[f"{attention}{part}/bias"] = biases[rows].reshape(HEADS, 4)
        arrays[f"{attention}out/kernel"] = numpy[f"{ours}attn.proj.weight"].T.reshape(HEADS, 4, 12)
        arrays[f"{attention}out/bias"] = numpy[f"{ours}attn.proj.bias"]
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}{name}/scale"] = numpy[f"{ours}{norm}.weight"]
            arrays[f"{theirs}{name}/bias"] = numpy[f"{ours}{norm}.bias"]
        for j in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = numpy[f"{ours}mlp.fc{j + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = numpy[f"{ours}mlp.fc{j + 1}.bias"]
    return arrays


def save(path, kind, state):
    """Write `state` as one of KINDS; returns the file."""
    file = path / f"vit.{kind if kind in ('npz', 'safetensors') else 'pth'}"
    if kind == "npz":
        np.savez(file, **google_arrays(state))
    elif kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state if kind == "bare" else {kind: state, "epoch": 3}, file)
    return file


KINDS = ["bare", "model", "state_dict", "safetensors", "npz"]


def loaded(file, size=(64, 64), **changes):
    encoder = VisionEncoder(config(size, **changes))
    load_pretrained(encoder, file)
    return encoder.backbone.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_loads_exactly(tmp_path, kind):
    state = source()
    ours = loaded(save(tmp_path, kind, state))
    assert set(ours) == {name for name in state if not name.startswith("head.")}
    assert all(torch.equal(value, state[name]) for name, value in ours.items())


@pytest.mark.parametrize("kind", ["bare", "safetensors", "npz"])
@pytest.mark.parametrize(("grid", "new"), [(24, (30, 30)), (24, (18, 32)), (4, (2, 8)), (5, (3, 2))])
def test_positions_are_resampled_as_pillow_does(tmp_path, kind, grid, new):
    """Bicubic with Keys's a = -0.5; also where the number of positions stays the same (18 x 32, 2 x 8)."""
    state = source(grid)
    ours = loaded(save(tmp_path, kind, state), (16 * new[0], 16 * new[1]))["pos_embed"]
    theirs = state["pos_embed"]
    assert torch.equal(ours[:, :1], theirs[:, :1])  # the class token's
    channels = theirs[0, 1:].reshape(grid, grid, 12).unbind(-1)
    resized = [np.asarray(Image.fromarray(c.numpy()).resize(new[::-1], Image.Resampling.BICUBIC)) for c in channels]
    np.testing.assert_allclose(ours[0, 1:].reshape(*new, 12), np.stack(resized, -1), atol=2e-5)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]
)
def test_other_families_at_another_size(tmp_path, name):
    patch = 14 if "14" in name else 16
    first, other = (
        VisionEncoder(vision_config(name, (rows * patch, columns * patch), width=24, depth=1, heads=3))
        for rows, columns in ((4, 4), (2, 8))
    )
    state = {key: torch.randn_like(value) for key, value in first.backbone.state_dict().items()}
    load_pretrained(other, save(tmp_path, "bare", state))
    ours = other.backbone.state_dict()
    differing = [key for key, value in state.items() if not torch.equal(value, ours[key])]
    assert differing == ["pos_embed"] and ours["pos_embed"].shape == state["pos_embed"].shape
    assert other(torch.randn(1, 3, 2 * patch, 8 * patch)).isfinite().all()


def test_half_precision_files_load(tmp_path):
    state = {name: value.half() for name, value in source().items()}
    ours = loaded(save(tmp_path, "safetensors", state)).items()
    assert all(value.dtype == torch.float32 and torch.equal(value, state[name].float()) for name, value in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_lacks_is_never_left_random(tmp_path, kind):
    encoder = VisionEncoder(config())
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    file = save(tmp_path, kind, source(depth=1))  # one block where two are needed
    message = refused(load_pretrained, encoder, file)
    assert str(file) in message and ("blocks.1." in message or "encoderblock_1" in message)
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())


@pytest.mark.parametrize("kind", ["bare", "npz"])
def test_weights_of_another_width_or_with_nan_are_refused(tmp_path, kind):
    file = save(tmp_path, kind, source())
    assert str(file) in refused(lambda: loaded(file, width=24))
    state = source()
    state["blocks.0.mlp.fc1.weight"][0, 0] = torch.nan
    refused(loaded, save(tmp_path, kind, state))


LACKING = ["pos_embed", "blocks.1.norm1.bias", "cls_token", "patch_embed.proj.bias"]
EXTRA = ["blocks.2.norm1.weight", "blocks.0.ls1.gamma", "norm_pre.weight", "reg_token"]


@pytest.mark.parametrize("name", LACKING + EXTRA)
def test_weights_of_another_architecture_are_refused(tmp_path, name):
    state = source()
    if name in LACKING:
        del state[name]
    else:
        state[name] = torch.ones(12)
    assert name in refused(loaded, save(tmp_path, "bare", state))


def hostile_files(folder):
    """(name, bytes) of files that are no weights."""
    state = source()
    for kind in ("bare", "safetensors", "npz"):
        file = save(folder, kind, state)
        whole = file.read_bytes()
        for size in (0, 1, 100, len(whole) // 2, len(whole) - 30):
            yield f"cut{size}{file.suffix}", whole[:size]
    for suffix in (".pth", ".safetensors", ".npz", ".npy", ""):
        yield f"text{suffix}", b"this is not a file of weights\n" * 20
    for i, attack in enumerate(attacks(folder / "ran")):
        yield f"pickle{i}.safetensors", pickle.dumps(attack)
        np.savez(folder / "vit.npz", **google_arrays(state) | {"cls": np.array([attack], dtype=object)})
        yield f"numpy{i}.npz", (folder / "vit.npz").read_bytes()


def test_damaged_foreign_and_hostile_files(tmp_path, recwarn):
    for name, content in hostile_files(tmp_path):
        file = write(tmp_path / name, content)
        message = refused(loaded, file)
        assert str(file) in message and "check the file" in message
        assert not (tmp_path / "ran").exists(), name
    assert "no such file" in refused(loaded, tmp_path / "absent.pth")
    shown = [warning for warning in recwarn if warning.category is not ResourceWarning]
    assert shown == []  # they would be lines beside the one


@pytest.mark.parametrize("values", [[1, 2], {"model": 3}, {"state_dict": {"pos_embed": "x"}}, {1: 2}, 5], ids=repr)
def test_torch_files_of_something_else(tmp_path, values):
    assert "vit.pth" in refused(loaded, save(tmp_path, "bare", values))


class TestHub:
    """timm's hub, with a file in place of the download."""

    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch, tmp_path):
        download = Mock(return_value=str(tmp_path / "vit.safetensors"))
        monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
        monkeypatch.setattr(pretrained, "try_to_load_from_cache", download)

    def test_weights_of_the_hub(self, tmp_path):
        state = source(14)  # the published model is for 224 pixels
        save(tmp_path, "safetensors", state)
        ours = loaded(None, (224, 224))
        assert all(torch.equal(value, state[name]) for name, value in ours.items())
        resampled = loaded(None, (448, 112))["pos_embed"]
        assert torch.equal(resampled, loaded(tmp_path / "vit.safetensors", (448, 112))["pos_embed"])

    def test_without_a_network_the_remedies_are_named_before_any_retry(self, monkeypatch):
        retry = Mock(side_effect=AssertionError("timm's client would retry for a minute"))
        monkeypatch.setattr("timm.models._hub.hf_hub_download", retry)
        monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_: None)
        unreachable = Mock(side_effect=ConnectionError("Name or service\nnot known"))
        monkeypatch.setattr(pretrained, "get_hf_file_metadata", unreachable)
        message = refused(loaded, None)
        assert "not known" in message and "give a file" in message and "random weights" in message

    def test_a_model_without_published_weights(self):
        encoder = VisionEncoder(vision_config("vit_small_patch16_36x1_224", (32, 32), depth=1))
        assert "random weights" in refused(load_pretrained, encoder, None)
