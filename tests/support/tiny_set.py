"""A tiny data set in the real input formats, noise images, rectangular objects, plain expressions."""

import json
import pickle
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SIZES = [(60, 80), (80, 60), (48, 48), (33, 90), (100, 30), (24, 20)]  # height, width; larger and smaller than 48
WORDS = ["the", "left", "man", "in", "red", "shirt", "zebra"]
VOCABULARY = ["<pad>", "<go>", "<eos>", "<unk>", *WORDS[:-1], ","]
GREF = Path("external/refer/data/refcocog")


def make_tiny_set(root: Path, images: int = 5, refs: int = 2, sentences: int = 2) -> Path:
    """Write Gref, unc and referit below `root`: in each split `refs` of every image, interleaved; returns `root`."""
    rng = np.random.default_rng(7)
    arrays, boxes = [], []  # a box: top, left, bottom, right
    for height, width in (SIZES[number % len(SIZES)] for number in range(images)):
        arrays.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        corners = [(int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))) for _ in range(refs)]
        boxes.append([(top, left, top + height // 3, left + width // 3) for top, left in corners])
    _write_coco(root, GREF / "refs(google).p", ("train", "val"), arrays, boxes, sentences)
    _write_coco(root, GREF.parent / "refcoco/refs(unc).p", ("train", "testA"), arrays, boxes, sentences)
    _write_referit(root / "data/referit", arrays, boxes, sentences)
    for name in ("Gref", "referit"):
        (root / f"data/vocabulary_{name}.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    return root


def edit_refs(root: Path, change) -> None:
    """Let `change` alter the list of Gref's refs."""
    path = root / GREF / "refs(google).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs, protocol=2))


def edit_instances(root: Path, change) -> None:
    """Let `change` alter the content of Gref's instances.json."""
    path = root / GREF / "instances.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _sentences(ref: int, count: int) -> list[str]:
    return [" ".join(WORDS[(ref + k + j) % len(WORDS)] for j in range(2 + k)) for k in range(count)]


def _write_coco(root: Path, refs_file: Path, splits, arrays, boxes, sentences: int) -> None:
    folder = root / "data/coco/images/train2014"
    folder.mkdir(parents=True, exist_ok=True)
    refs, annotations, images = [], [], []
    for number, array in enumerate(arrays):
        name = f"COCO_train2014_{number:012d}.jpg"
        image = Image.fromarray(array)
        (image.convert("L") if number == 1 else image).save(folder / name, quality=90)
        images.append({"id": number, "file_name": name, "height": array.shape[0], "width": array.shape[1]})
    for split in splits:
        for objects in zip(*boxes, strict=True):  # one of each image
            for number, (top, left, bottom, right) in enumerate(objects):
                key, polygon = len(refs), [left, top, right, top, right, bottom, left, bottom]
                entry = {"ref_id": key, "ann_id": key, "image_id": number, "category_id": 1, "split": split}
                texts = enumerate(_sentences(key, sentences))
                entry["sentences"] = [{"sent_id": i, "raw": s, "sent": s, "tokens": s.split()} for i, s in texts]
                refs.append(entry)
                annotations.append({"id": key, "image_id": number, "category_id": 1, "segmentation": [polygon]})
    path = root / refs_file
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(refs, protocol=2))
    value = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path.with_name("instances.json").write_text(json.dumps(value))


def _write_referit(folder: Path, arrays, boxes, sentences: int) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "mask").mkdir()
    queries = {}
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"images/{number}.jpg", quality=90)
        for object_, (top, left, bottom, right) in enumerate(boxes[number]):
            outside = np.ones(array.shape[:2], np.uint8)
            outside[top:bottom, left:right] = 0
            scipy.io.savemat(folder / f"mask/{number}_{object_}.mat", {"segimg_t": outside})
            queries[f"{number}_{object_}"] = _sentences(number + object_, sentences)
    for split in ("trainval", "test"):
        (folder / f"referit_query_{split}.json").write_text(json.dumps(queries))
