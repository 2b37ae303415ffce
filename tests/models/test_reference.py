"""The model against numbers of the authors' code, and against a plain float64 form where there are none."""

import copy
import json
import re

import pytest
import torch

from benchmarks.plain_restr import PlainReSTR
from models import from_reference, to_reference
from models.config import DecoderConfig, FusionConfig, ReSTRConfig
from models.reference import HEAD, config_from_reference, our_name, reference_config
from models.restr import build_restr
from tests.conftest import ROOT
from tools.model_size import count_parameters
from train.options import Recipe
from utils.errors import InputError

CONFIG = {
    "v_backbone": {
        "backbone": "vit_base_patch16_384",
        "image_size": [64, 96],
        "patch_size": 16,
        "d_model": 24,
        "n_heads": 3,
        "n_layers": 2,
        "drop_path_rate": 0.1,
    },
    "l_backbone": {"d_lang": 12, "n_layers": 2, "n_heads": 3},
    "mm_fusion": {"n_layers": 2, "n_heads": 3, "drop_path_rate": 0.1, "is_shared": False, "is_decoder": True},
}


@pytest.mark.parametrize("case", ["default", "shared", "nodecoder"])
def test_weights_go_back_to_the_authors_names_unchanged(case):
    stored = torch.load(ROOT / f"tests/data/micro_{case}.pt", weights_only=True)
    back = to_reference(from_reference(stored["state_dict"], stored["config"]))
    assert set(back) - set(HEAD) == set(stored["state_dict"]) - set(HEAD)
    assert all(torch.equal(back[name], value) for name, value in stored["state_dict"].items() if name not in HEAD)


@pytest.mark.parametrize("case", ["default", "shared", "nodecoder"])
def test_every_official_name_and_count(case):
    official = json.loads((ROOT / "tests/data/official_keys.json").read_text())[case]
    names = {name: tuple(shape) for name, shape in official["shapes"].items()}
    config = config_from_reference(reference_config(names, shared=case == "shared"), vocabulary_size=12112)
    with torch.device("meta"):
        ours = to_reference(build_restr(config))
    assert {name: tuple(value.shape) for name, value in ours.items()} == names
    assert len({our_name(name) for name in names if name not in HEAD}) == len(names) - 2
    counts = count_parameters(config)
    counts.pop("embeddings")
    assert sum(counts.values()) == official["n_params"] - official["head"]
    assert counts["vision"] == official["by_part"]["encoder_v"] - official["head"]
    assert counts["language"] == official["by_part"]["encoder_l"]
    assert counts["fusion"] + counts.get("decoder", 0) == official["by_part"]["fusion_module"]


def test_learning_rates_of_the_authors_schedule():
    stored = json.loads((ROOT / "tests/data/schedule.json").read_text())["lr_poly"]
    args = stored["args"]
    ends = {"lr": args["base"], "end_lr": args["end"]}
    recipe = Recipe(**ends, num_steps=args["max_iter"], warm_iter=args["warm"], power=args["power"])
    for step, rate in stored["step_to_lr"].items():
        assert args["base"] * recipe.lr_factor(int(step)) == pytest.approx(rate, rel=1e-12, abs=1e-30)


def random_case(variant="indirect", **fusion):
    """A random float64 model, a random input, and the reference's dict of its configuration."""
    config = copy.deepcopy(CONFIG)
    config["mm_fusion"].update(fusion)
    ours = config_from_reference(config, vocabulary_size=30)
    ours = ReSTRConfig(ours.vision, ours.language, FusionConfig(variant, **_fusion(ours)), ours.decoder)
    torch.manual_seed(0)
    model = build_restr(ours).double().eval()
    for parameter in model.parameters():  # zeros and ones of a fresh model would hide a wrong name
        parameter.data += 0.2 * torch.randn_like(parameter)
    image = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    ids = torch.randint(1, 30, (3, 20))
    ids[0, :15], ids[1, :] = 0, 0
    return model, config, image, ids


def _fusion(config):
    return {name: getattr(config.fusion, name) for name in ("layers", "heads", "shared", "drop_path")}


def reference_names(model):
    """State dict in the reference's names, for the variants that it has no model of as well."""
    state = {
        name.replace("vision.backbone.", "encoder_v.").replace("language.", "encoder_l."): value
        for name, value in model.state_dict().items()
    }
    renames = {
        r"^encoder_l\.proj\.": "encoder_l.proj_lang.",
        r"^encoder_l\.norm\.": "encoder_l.lang_norm.",
        r"^fusion\.class_seed": "fusion_module.seed_emb",
        r"^fusion\.proj_classifier": "fusion_module.proj_cls",
        r"^fusion\.visual_linguistic\.blocks": "fusion_module.blocks_vl",
        r"^fusion\.linguistic_seed\.blocks": "fusion_module.blocks_ls",
        r"^fusion\.": "fusion_module.",
        r"^decoder\.up\.(\d)\.": r"fusion_module.decoder.\1.up.1.",
        r"^decoder\.head\.": "fusion_module.decoder.4.",
    }
    for pattern, name in renames.items():
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"is_shared": True},
        {"is_shared": True, "n_layers": 3},
        {"is_decoder": False},
        {"n_layers": 1},
        {"n_layers": 4},
        {"variant": "independent"},
        {"variant": "vanilla"},
    ],
    ids=str,
)
def test_model_equals_the_plain_form(case):
    model, config, image, ids = random_case(**case)
    plain = PlainReSTR(reference_names(model), config, case.get("variant", "indirect"))
    for ours, theirs in zip(model(image, ids), plain(image, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [{}, {"is_shared": True}, {"is_decoder": False}], ids=str)
def test_gradients_equal_those_of_the_plain_form(case):
    model, config, image, ids = random_case(**case)
    state = {name: value.clone().requires_grad_() for name, value in reference_names(model).items()}
    for pixel, _ in (model(image, ids), PlainReSTR(state, config)(image, ids)):
        pixel.square().sum().backward()
    for name, parameter in model.named_parameters():
        theirs = next(value.grad for key, value in state.items() if our_name(key) == name)
        if name == "language.embedding.weight":  # the reference's padding row gets no gradient
            theirs[0] = 0
        assert (parameter.grad - theirs).norm() <= 1e-9 * theirs.norm(), name


@pytest.mark.parametrize("case", [{}, {"is_shared": True}, {"is_decoder": False}], ids=str)
def test_from_reference_finds_what_to_reference_wrote(case):
    model, config, image, ids = random_case(**case)
    state = {f"module.{name}": value for name, value in to_reference(model).items()}  # as saved under DataParallel
    again, model, image = from_reference(state, config), model.float(), image.float()
    assert all(torch.equal(a, b) for a, b in zip(model(image, ids), again(image, ids), strict=True))


def test_a_reference_state_with_a_wrong_tensor_is_refused():
    model, config, _, _ = random_case()
    state = to_reference(model)
    for broken in (
        {name: value for name, value in state.items() if name != "fusion_module.norm.weight"},
        {**state, "fusion_module.extra.weight": torch.zeros(1)},
        {**state, "encoder_l.proj_lang.bias": torch.zeros(7)},
        {**state, "classifier.weight": torch.zeros(1)},
        {},
    ):
        with pytest.raises(InputError):
            from_reference(broken, config)
    with pytest.raises(InputError, match="configuration"):
        from_reference(state, {"v_backbone": {}})


def test_paper_size_is_the_default():
    counts = count_parameters(ReSTRConfig())
    assert counts == {
        "vision": 86_339_328,  # the authors' 87.11 M less the unused head
        "language": 10_369_704,
        "fusion": 30_714_624,
        "decoder": 1_566_816,
        "embeddings": 3_633_600,
    }
    small = ReSTRConfig(decoder=DecoderConfig(False))
    assert sum(count_parameters(small).values()) - 3_633_600 == 128_192_656 - 769_000
