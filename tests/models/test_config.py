"""The configuration of a model: values from strangers' files are checked before anything is built."""

import copy

import pytest

from models.config import ReSTRConfig
from models.vision import vision_config
from tests.support.hostile import UNSHOWN, refused
from tests.support.small_model import CONFIG


def test_config_goes_through_plain_values():
    assert ReSTRConfig.from_dict(CONFIG.to_dict()) == CONFIG
    as_json = CONFIG.to_dict()
    as_json["vision"]["image_size"] = [32, 48]
    assert ReSTRConfig.from_dict(as_json) == CONFIG


WRONG = {
    "vision width": ["24", 10**9, *UNSHOWN],
    "vision depth": [10**9, True],
    "vision heads": [2.5],
    "vision patch_size": [0],
    "vision image_size": [[32, -48], [10**6, 10**6], [32], [32, 48, 3], "ab", 32],
    "vision backbone": [7],
    "vision norm_eps": [float("nan")],
    "vision drop_path": [1.0],
    "language vocabulary_size": [10**12],
    "language mlp_ratio": [float("inf")],
    "language width": [None],
    "fusion layers": [0, 10**9],
    "fusion shared": [1],
    "fusion variant": ["sideways", ["indirect"], "\x1b[2J" + 10_000 * "é"],
    "decoder enabled": ["yes"],
    "decoder colour": ["red"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_config_with_a_wrong_value_is_refused(name):
    part, key = name.split()
    for value in WRONG[name]:
        broken = CONFIG.to_dict()
        broken[part][key] = value
        refused(ReSTRConfig.from_dict, broken)


def test_a_whole_number_does_for_a_fraction():
    values = CONFIG.to_dict()
    values["language"]["mlp_ratio"] = 4
    assert ReSTRConfig.from_dict(values).language.mlp_ratio == 4


def test_a_config_with_other_parts_is_refused():
    whole = CONFIG.to_dict()
    for part, names in whole.items():
        refused(ReSTRConfig.from_dict, {key: value for key, value in whole.items() if key != part})
        for name in names:
            broken = copy.deepcopy(whole)
            del broken[part][name]
            assert name in refused(ReSTRConfig.from_dict, broken)
    for broken in ({**whole, "extra": {}}, {**whole, "fusion": None}, {**whole, "fusion": ["layers"]}, [], None, 3):
        refused(ReSTRConfig.from_dict, broken)


def test_a_config_of_version_1_0_gives_the_same_model():
    old = ReSTRConfig().to_dict()
    old["vision"] |= dict.fromkeys(["patch_size", "width", "depth", "heads"])  # None: timm's
    assert ReSTRConfig.from_dict(old) == ReSTRConfig()
    assert ReSTRConfig().vision == vision_config("vit_base_patch16_384", (480, 480))
    old["vision"]["norm_eps"] = None
    assert ReSTRConfig.from_dict(old).vision.norm_eps is None
