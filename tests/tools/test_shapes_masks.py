"""The masks of the shapes: as drawn, as on the photograph, as pycocotools and scipy read them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import loadmat
from scipy.ndimage import binary_fill_holes, label

from tests.support.shapes import IMAGES, SEED, colour_of, decode, made_shapes, masks_of, queries
from tools.shapes.drawing import visible_masks
from tools.shapes.formats import annotation, segmentation
from tools.shapes.scenes import sample_scene


@pytest.fixture(scope="module", params=["easy", "full"])
def made(request, tmp_path_factory):
    return made_shapes(request.param, tmp_path_factory)


def test_decoded_masks_are_the_drawn_ones(made):
    masks, overlaps = masks_of(made), []
    by_image = {}
    for a in made.instances["annotations"]:
        by_image.setdefault(a["image_id"], []).append(a)
    for index in range(sum(IMAGES.values())):
        scene, _ = sample_scene(np.random.default_rng([SEED, index]), made.level, 128)
        drawn = visible_masks(scene)
        entries = by_image[index + 1]
        assert len(entries) == len(drawn)
        for a, (full, visible) in zip(entries, drawn, strict=True):
            decoded = masks[a["id"]]
            overlaps.append((decoded & visible).sum() / (decoded | visible).sum())
            assert a["area"] == visible.sum() >= 0.6 * full.sum()
            assert a["area"] >= 60  # pixels at 128 x 128
            box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(decoded)))
            assert np.allclose(a["bbox"], box)
    assert min(overlaps) >= 0.9
    assert np.mean(np.array(overlaps) > 0.97) > 0.95


def test_masks_lie_on_the_shapes_in_the_photograph(made):
    """Pixels of the shape's hue (its rim is a darker shade of it) near the mask are the mask's."""
    masks, overlaps = masks_of(made), []
    for a in made.instances["annotations"]:
        image, mask = made.image(a["image_id"]), masks[a["id"]]
        if image.mode == "L" or colour_of(made, a, mask) == "white":
            continue
        pixels = np.asarray(image, float)
        hue = np.median(pixels[mask], axis=0)
        cosine = pixels @ hue / np.linalg.norm(pixels, axis=2) / np.linalg.norm(hue)
        x, y, w, h = (int(v) for v in a["bbox"])
        window = np.zeros_like(mask)
        window[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2] = True
        found = (cosine > 0.97) & window
        others = [
            masks[b["id"]] for b in made.instances["annotations"] if b["image_id"] == a["image_id"] and b is not a
        ]
        found &= ~np.any(others, axis=0)
        overlaps.append((found & mask).sum() / (found | mask).sum())
    assert len(overlaps) > 60
    assert np.median(overlaps) > 0.85
    assert np.quantile(overlaps, 0.05) > 0.6


def test_some_masks_are_in_pieces_and_rings_have_their_hole(made):
    forms = Counter()
    masks = masks_of(made)
    names = {c["id"]: c["name"] for c in made.instances["categories"]}
    referred = {r["ann_id"] for r in made.refs["refcoco", "unc"]}
    for a in made.instances["annotations"]:
        mask, form = masks[a["id"]], a["segmentation"]
        hole = (binary_fill_holes(mask) & ~mask).sum()
        if isinstance(form, dict):
            assert set(form) == {"counts", "size"} and sum(form["counts"]) == mask.size
            assert isinstance(form["counts"], list) and form["size"] == list(mask.shape)
            assert names[a["category_id"]] == "ring" and hole > 20
        else:
            assert hole == 0
            assert len(form) == label(mask)[1]
            assert all(len(p) >= 8 and len(p) % 2 == 0 for p in form)
        kind = "rle" if isinstance(form, dict) else "pieces" if len(form) > 1 else "one"
        forms[kind] += a["id"] in referred
    assert forms["rle"] >= 5 and forms["pieces"] >= 5 and forms["one"] >= 50


def test_referit_is_a_twin(made):
    """Its image n is COCO's image n, its object k the k-th annotation there, where segimg_t is 0."""
    masks = masks_of(made)
    files = sorted((made.root / "data/referit/images").iterdir(), key=lambda p: int(p.stem))
    assert len(files) == sum(IMAGES.values())
    all_queries = queries(made, "trainval") | queries(made, "test")
    for image, file in zip(made.instances["images"], files, strict=True):
        assert Image.open(file).size == (image["width"], image["height"])
        entries = [a for a in made.instances["annotations"] if a["image_id"] == image["id"]]
        for k, a in enumerate(entries, 1):
            mat = loadmat(made.root / f"data/referit/mask/{file.stem}_{k}.mat")["segimg_t"]
            assert np.array_equal(mat == 0, masks[a["id"]])
            all_queries.pop(f"{file.stem}_{k}", None)
    assert not all_queries  # no query without an image and a mask


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_any_mask_survives_its_segmentation(mask):
    assert np.array_equal(decode(segmentation(mask), *mask.shape), mask)
    assert annotation(mask, 1, 1, 1)["area"] == mask.sum()
