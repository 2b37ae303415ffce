"""A RefCOCO of any size for benchmarks: 640 x 480 JPEGs, 2.5 refs an image, 3 expressions a ref."""

import json
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from utils.errors import InputError

WORDS = "the left right man woman in red blue shirt chair standing holding a bottle on near".split()
HEIGHT, WIDTH = 480, 640
SENTENCES = 3
SAMPLES = [Path(skimage.data.__file__).parent / name for name in ("astronaut.png", "coffee.png", "rocket.jpg")]


def make_set(root: Path, images: int, photographs: Path | None = None, split: str = "train") -> Path:
    """Write a split of `unc` with `images` images below `root`; returns `root`.

    `photographs`: a folder of JPEGs to use in turn, scaled to 640 x 480; None: three that come with scikit-image.
    """
    rng = np.random.default_rng(1)
    folder, annotated = root / "data/coco/images/train2014", root / "external/refer/data/refcoco"
    folder.mkdir(parents=True)
    annotated.mkdir(parents=True)
    sources = sorted(photographs.rglob("*.jpg")) if photographs else SAMPLES
    if not sources:
        raise InputError(f"--images {photographs}: no .jpg file there; give a folder of photographs")
    jpegs = [_jpeg(path) for path in sources[:images]]
    refs, annotations, entries = [], [], []
    for number in range(images):
        name = f"COCO_train2014_{number:012d}.jpg"
        (folder / name).write_bytes(jpegs[number % len(jpegs)])
        entries.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for ref in range(len(refs), len(refs) + 2 + number % 2):
            texts = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(SENTENCES)]
            sentences = [{"sent_id": SENTENCES * ref + k, "sent": text} for k, text in enumerate(texts)]
            annotations.append({"id": ref, "image_id": number, "segmentation": [_polygon(rng)], "iscrowd": 0})
            refs.append({"ref_id": ref, "ann_id": ref, "image_id": number, "split": split, "sentences": sentences})
    (annotated / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (annotated / "instances.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    (root / "data/vocabulary_Gref.txt").write_text("\n".join(["<pad>", "<go>", "<eos>", "<unk>", *WORDS]) + "\n")
    return root


def _jpeg(path: Path) -> bytes:
    file = BytesIO()
    Image.open(path).convert("RGB").resize((WIDTH, HEIGHT)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _polygon(rng: np.random.Generator) -> list[float]:
    """A polygon of 40 corners on a rough ellipse of a tenth of the image, as x, y, x, y, ..."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    wobble = 1 + 0.2 * rng.standard_normal(40)
    x = np.clip(rng.uniform(150, WIDTH - 150) + 100 * wobble * np.cos(angle), 0, WIDTH - 1)
    y = np.clip(rng.uniform(120, HEIGHT - 120) + 90 * wobble * np.sin(angle), 0, HEIGHT - 1)
    return np.stack([x, y], 1).ravel().round(2).tolist()
