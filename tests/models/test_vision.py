"""The vision encoder: backbones of timm, their normalisation, their gradients, the whole model around them."""

import numpy as np
import pytest
import timm
import torch

from models.config import VisionConfig
from models.vision import VisionEncoder, vision_config
from tests.support.hostile import refused
from tests.support.small_model import CONFIG, tiny_model

# timm's name -> (patch size, class and register tokens); two blocks of each are built
PLAIN_VITS = {
    "vit_tiny_patch16_224": (16, 1),
    "vit_small_patch8_224.dino": (8, 1),
    "vit_small_patch14_dinov2": (14, 1),
    "vit_small_patch14_reg4_dinov2": (14, 5),
    "vit_small_patch16_dinov3": (16, 5),
    "deit3_small_patch16_224": (16, 1),
    "deit_tiny_distilled_patch16_224": (16, 2),
    "eva02_tiny_patch14_224": (14, 1),
    "vit_base_patch16_clip_224": (16, 1),
    "vit_base_patch16_siglip_224": (16, 0),
    "vit_little_patch16_reg4_gap_256": (16, 4),
    "vit_small_patch16_18x2_224": (16, 1),
}


def noise_loss(output, seed=0):
    """A loss that no symmetry of the network makes stationary."""
    generator = torch.Generator().manual_seed(seed)
    return (output * torch.randn(output.shape, generator=generator)).sum()


@pytest.mark.parametrize("name", PLAIN_VITS)
def test_plain_vits_of_timm(name):
    patch, prefix = PLAIN_VITS[name]
    encoder = VisionEncoder(vision_config(name, (3 * patch, 5 * patch), depth=2, drop_path=0.0)).train()
    assert (encoder.patch_size, encoder.grid) == (patch, (3, 5))
    assert encoder.backbone.num_prefix_tokens == prefix
    published = timm.data.resolve_model_data_config(timm.create_model(name, depth=1))
    np.testing.assert_allclose(encoder.mean.flatten(), published["mean"], rtol=1e-6)
    np.testing.assert_allclose(encoder.std.flatten(), published["std"], rtol=1e-6)
    image = torch.randn(2, 3, 3 * patch, 5 * patch)
    v = encoder(image)
    assert v.shape == (2, 15, encoder.width)
    noise_loss(v).backward()
    unused = [key for key, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert unused == []  # such a parameter stops training on several GPUs


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_features_are_those_of_the_patches_in_reading_order(name):
    """A change of one patch before any block shows at that patch's place once the blocks are gone."""
    patch, prefix = PLAIN_VITS[name]
    encoder = VisionEncoder(vision_config(name, (2 * patch, 3 * patch), depth=1)).eval()
    encoder.backbone.blocks = type(encoder.backbone.blocks)()
    image = torch.zeros(1, 3, 2 * patch, 3 * patch)
    plain = encoder(image)
    image[..., patch:, patch : 2 * patch] = 1  # second row, second column
    changed = (encoder(image) - plain).abs().sum(-1)[0] > 0
    assert changed.tolist() == [False, False, False, False, True, False]


def test_full_size_shapes():
    with torch.device("meta"):
        encoder = VisionEncoder(vision_config("vit_base_patch16_384", (480, 480)))
        assert encoder(torch.zeros(2, 3, 480, 480)).shape == (2, 900, 768)
    assert (encoder.heads, encoder.width, len(encoder.backbone.blocks)) == (12, 768, 12)
    assert encoder.backbone.norm.eps == 1e-5
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.backbone.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-7)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "mixer_s32_224", "vit_tiny_r_s16_p8_224"])
def test_other_networks_are_refused(name):
    assert "plain ViT" in refused(VisionEncoder, vision_config(name, (224, 224)))


@pytest.mark.parametrize("patch", [(16, 8), (1, 1)])
def test_patches_that_are_not_square_or_a_pixel_are_refused(monkeypatch, patch):
    monkeypatch.setattr("timm.layers.PatchEmbed.patch_size", property(lambda _: patch, lambda *_: None), raising=False)
    assert "not a plain ViT (its patches" in refused(VisionEncoder, CONFIG.vision)


@pytest.mark.parametrize("name", ["no_such_vit", "hf-hub:someone/model", "local-dir:folder", "../vit", "", "a\nb"])
def test_names_that_timm_does_not_have_are_refused(name):
    assert "unknown to timm" in refused(VisionEncoder, VisionConfig(name, (32, 32)))


@pytest.mark.parametrize("name", ["vit_shapes_patch8", "vit_base_patch16_384"])  # ours, and timm's
def test_a_misspelt_name_is_told_the_right_one(name):
    assert f"did you mean {name}?" in refused(VisionEncoder, VisionConfig(name.replace("patch", "pach"), (32, 32)))


@pytest.mark.parametrize(
    ("name", "size", "fault"),
    [
        ("vit_tiny_patch16_224", (32, 40), "size 32 x 40 is not divisible"),
        ("vit_tiny_patch16_224", (40, 32), "size 40 x 32 is not divisible"),
        ("vit_small_patch14_dinov2", (480, 480), "size 480 x 480 is not divisible"),
        ("vit_shapes_patch8", (1024, 1032), "more than 16384 patches of 8"),
    ],
)
def test_sizes_that_no_grid_of_patches_has_are_refused(name, size, fault):
    with torch.device("meta"):
        assert fault in refused(VisionEncoder, vision_config(name, size, depth=1))
        VisionEncoder(vision_config("vit_shapes_patch8", (1024, 1024), depth=1))  # exactly 16384 patches


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224"])
def test_normalise(name):
    encoder = VisionEncoder(vision_config(name, (32, 32), depth=1))
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 7), dtype=np.uint8)
    image[0, 0, 0, :2] = 0, 255
    cfg = timm.get_pretrained_cfg(name)
    mean, std = (np.array(values, np.float64).reshape(3, 1, 1) for values in (cfg.mean, cfg.std))
    ours = encoder.normalise(torch.from_numpy(image))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, (image / 255.0 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "eva02_tiny_patch14_224"])
def test_patch_14_gives_logits_of_the_input_size(name):
    model = tiny_model(vision=vision_config(name, (42, 70), width=24, heads=2, depth=1)).train()
    ids = torch.zeros(2, 20, dtype=torch.long)
    ids[:, -3:] = torch.tensor([[1, 2, 3], [4, 5, 8]])
    pixel, patch = model(torch.randint(0, 256, (2, 3, 42, 70), dtype=torch.uint8), ids)
    assert pixel.shape == (2, 1, 42, 70) and patch.shape == (2, 1, 3, 5)
    (noise_loss(pixel) + noise_loss(patch, seed=1)).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


def test_parameter_groups():
    model = tiny_model()
    rest, vision = model.parameter_groups(lr=1e-5, vision_lr_scale=0.1)
    assert (rest["lr"], vision["lr"]) == (1e-5, pytest.approx(1e-6))
    names = {id(value): name for name, value in model.named_parameters()}
    grouped = [names[id(value)] for group in (rest, vision) for value in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    assert [names[id(value)] for value in vision["params"]] == [n for n in names.values() if n.startswith("vision.")]
    optimizer = torch.optim.AdamW([rest, vision], weight_decay=5e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 5e-4]  # biases and norms too
