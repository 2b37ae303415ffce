"""A RefCOCO of any size for benchmarks: 640 x 480 JPEGs, 2.5 refs an image, 3 expressions a ref."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = "the left right man woman in red blue shirt chair standing holding a bottle on near".split()
HEIGHT, WIDTH = 480, 640
SENTENCES = 3


def make_set(root: Path, images: int, photographs: Path | None = None, split: str = "train") -> Path:
    """Write a split of `unc` with `images` images below `root`; returns `root`.

    `photographs`: a folder of JPEGs to use in turn, cut and scaled to 640 x 480; None: synthetic ones.
    """
    rng = np.random.default_rng(1)
    folder = root / "data/coco/images/train2014"
    folder.mkdir(parents=True)
    sources = sorted(photographs.rglob("*.jpg")) if photographs else []
    different = [_jpeg(folder / f"{k}.tmp", sources, k, rng) for k in range(min(images, len(sources) or 24))]
    refs, annotations, entries = [], [], []
    for number in range(images):
        name = f"COCO_train2014_{number:012d}.jpg"
        shutil.copyfile(different[number % len(different)], folder / name)
        entries.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for _ in range(2 + number % 2):
            annotations.append({"id": len(refs), "image_id": number, "segmentation": [_polygon(rng)], "iscrowd": 0})
            refs.append(_ref(len(refs), number, rng) | {"split": split})
    for path in different:
        path.unlink()
    annotated = root / "external/refer/data/refcoco"
    annotated.mkdir(parents=True)
    (annotated / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (annotated / "instances.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    (root / "data/vocabulary_Gref.txt").write_text("\n".join(["<pad>", "<go>", "<eos>", "<unk>", *WORDS]) + "\n")
    return root


def _ref(number: int, image: int, rng: np.random.Generator) -> dict:
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(SENTENCES)]
    sentences = [{"sent_id": SENTENCES * number + k, "sent": text} for k, text in enumerate(texts)]
    return {"ref_id": number, "ann_id": number, "image_id": image, "sentences": sentences}


def _polygon(rng: np.random.Generator) -> list[float]:
    """A polygon of 40 corners on a rough ellipse of a tenth of the image, as x, y, x, y, ..."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    wobble = 1 + 0.2 * rng.standard_normal(40)
    x = np.clip(rng.uniform(150, WIDTH - 150) + 100 * wobble * np.cos(angle), 0, WIDTH - 1)
    y = np.clip(rng.uniform(120, HEIGHT - 120) + 90 * wobble * np.sin(angle), 0, HEIGHT - 1)
    return np.stack([x, y], 1).ravel().round(2).tolist()


def _jpeg(path: Path, sources: list[Path], number: int, rng: np.random.Generator) -> Path:
    image = Image.open(sources[number]).convert("RGB").resize((WIDTH, HEIGHT)) if sources else _synthetic(rng)
    image.save(path, "JPEG", quality=90)
    return path


def _synthetic(rng: np.random.Generator) -> Image.Image:
    """Noise whose power falls with frequency as a photograph's does, flat objects with edges, and sensor noise."""
    fy, fx = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij")
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / WIDTH)
    layers = []
    for _ in range(3):
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) * falling, s=(HEIGHT, WIDTH))
        layers.append(128 + 45 * noise / noise.std())
    pixels = np.stack(layers, -1)
    for _ in range(12):
        y, x = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        pixels[y : y + rng.integers(20, 200), x : x + rng.integers(20, 200)] += rng.normal(0, 50, 3)
    pixels += rng.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
