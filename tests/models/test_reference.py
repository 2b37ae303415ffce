"""The model against numbers of the authors' code, and against a plain float64 form where there are none."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.plain_restr import PlainReSTR
from models import from_reference, to_reference
from models.config import DecoderConfig, ReSTRConfig
from models.reference import HEAD, _reference_name, config_from_reference, our_name, reference_config
from models.restr import build_restr
from tests.conftest import DATA
from tests.support.small_model import REFERENCE, SIZE, WORDS
from tools.model_size import count_parameters

CONFIG = copy.deepcopy(REFERENCE)
CONFIG["v_backbone"]["n_layers"] = CONFIG["l_backbone"]["n_layers"] = 2
CASES = [{}, {"is_shared": True}, {"is_decoder": False}]  # what the authors' code can be


@pytest.mark.parametrize("case", ["default", "shared", "nodecoder"])
def test_weights_go_back_to_the_authors_names_unchanged(case):
    stored = torch.load(DATA / f"micro_{case}.pt", weights_only=True)
    back = to_reference(from_reference(stored["state_dict"], stored["config"]))
    assert set(back) - set(HEAD) == set(stored["state_dict"]) - set(HEAD)
    assert all(torch.equal(back[name], value) for name, value in stored["state_dict"].items() if name not in HEAD)


@pytest.mark.parametrize("case", ["default", "shared", "nodecoder"])
def test_every_official_name_and_count(case):
    official = json.loads((DATA / "official_keys.json").read_text())[case]
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


def random_case(variant="indirect", **fusion):
    """A random float64 model, a random input, and the reference's dict of its configuration."""
    config = {**CONFIG, "mm_fusion": {**CONFIG["mm_fusion"], **fusion}}
    ours = config_from_reference(config, len(WORDS))
    torch.manual_seed(0)
    model = build_restr(replace(ours, fusion=replace(ours.fusion, variant=variant))).double().eval()
    for parameter in model.parameters():  # zeros and ones of a fresh model would hide a wrong name
        parameter.data += 0.2 * torch.randn_like(parameter)
    image = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    ids = torch.randint(1, len(WORDS), (3, 20))
    ids[0, :15], ids[1, :] = 0, 0
    return model, config, image, ids


def reference_names(model):
    """State dict in the reference's names, for the variants that it has no model of as well."""
    return {_reference_name(name, 3): value for name, value in model.state_dict().items()}


VARIANTS = [{"variant": "independent"}, {"variant": "vanilla"}]
DEPTHS = [{"n_layers": 1}, {"n_layers": 4}, {"n_layers": 3, "is_shared": True}]


@pytest.mark.parametrize("case", [*CASES, *VARIANTS, *DEPTHS], ids=str)
def test_model_equals_the_plain_form(case):
    model, config, image, ids = random_case(**case)
    plain = PlainReSTR(reference_names(model), config, case.get("variant", "indirect"))
    for ours, theirs in zip(model(image, ids), plain(image, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
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
