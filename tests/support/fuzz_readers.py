"""Every reader of a file that a stranger may have made: a whole file for each, and how it is read."""

import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from PIL import Image

from eval.metrics import SampleScore
from eval.plot import read_log
from eval.results import read_result
from models import load_restr, to_reference
from prepare.glove import read_glove
from prepare.masks import read_mat_mask
from prepare.own_data import OwnData
from prepare.public import read_refs
from tests.models import test_pretrained
from tests.support.eval_folder import write_folder
from tests.support.report_case import write_result
from tests.support.small_model import REFERENCE, tiny_model, write_checkpoint
from tests.support.tiny_set import make_tiny_set
from utils.files.images import read_image, read_mask_png
from utils.prepared import PreparedSplit
from utils.text import SPECIAL_WORDS, Vocabulary
from utils.words import embeddings_file, read_embeddings, vocabulary_of


class Values(NamedTuple):
    """How the values of a file are taken out of it and written again, and others to put in."""

    load: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]
    extra: Sequence = ()


@dataclass
class Case:
    """A file as it should be, in one or several forms, and its reader. `values`: to change those in it."""

    path: Path
    read: Callable[[], Any]
    values: Values | None = None
    wholes: Sequence[bytes] = ()  # none: what stands at `path`

    def __post_init__(self):
        self.wholes = self.wholes or [self.path.read_bytes()]


def _dump_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _load_lines(data: bytes) -> list:
    return [json.loads(line) for line in data.splitlines()]


def _dump_lines(value: Any) -> bytes:
    return b"".join(_dump_json(line) + b"\n" for line in (value if isinstance(value, list) else [value]))


def _load_arrays(data: bytes) -> dict:
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


def _written(write: Callable, *arguments, **options) -> bytes:
    """What write(stream, ...) writes."""
    stream = io.BytesIO()
    write(stream, *arguments, **options)
    return stream.getvalue()


def _dump_arrays(arrays: Any) -> bytes:
    return _written(np.savez, **arrays if isinstance(arrays, dict) else {"text_batch": np.array(1)})


def _load_torch(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def _dump_torch(value: Any) -> bytes:
    return _written(lambda stream: torch.save(value, stream))


ARRAYS = [
    np.array(3), np.zeros(0), np.zeros((0, 5, 3), np.uint8), np.zeros((60_001, 1), bool), np.full((3, 3), np.nan),
    np.full(20, -1), np.full(20, 2**62), np.array(["../../x"]), np.array("a/b"), np.array(["\u202ex\x1b[2J"]),
    np.array([b"x"]), np.array([None], object), np.zeros(3, "c16"), np.zeros(3, "M8[s]"), np.array([("a", 1)], "U3,i4"),
]  # fmt: skip
TENSORS = torch.zeros(0), torch.zeros(1).expand(2**40), torch.zeros(2, 2, dtype=torch.int64), torch.ones(3).to_sparse()
SHAPES = [[1, 1, 5, 5]], [[1e9, 0, 5, 5, 9, 0]], {"size": [80, 60], "counts": "PPYo1"}, [0, 4800]

PICKLE = Values(pickle.loads, pickle.dumps)
JSON = Values(json.loads, _dump_json, SHAPES)
LINES = Values(_load_lines, _dump_lines)
NPZ = Values(_load_arrays, _dump_arrays, ARRAYS)
TORCH = Values(_load_torch, _dump_torch, TENSORS)


def _masks(root: Path, dataset: str, split: str) -> list:
    return [ref.mask() for ref in read_refs(root, dataset, split)]


def refs(folder: Path) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    path = root / "external/refer/data/refcocog/refs(google).p"
    value = pickle.loads(path.read_bytes())
    wholes = [pickle.dumps(value, protocol) for protocol in (0, 2, 4)]
    return Case(path, lambda: _masks(root, "Gref", "val"), PICKLE, wholes)


def instances(folder: Path) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    path = root / "external/refer/data/refcocog/instances.json"
    value = json.loads(path.read_text())
    value["annotations"][-1]["segmentation"] = {"size": [80, 60], "counts": [300, 90, 4410]}
    return Case(path, lambda: _masks(root, "Gref", "val"), JSON, [_dump_json(value)])


def queries(folder: Path) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    return Case(root / "data/referit/referit_query_test.json", lambda: _masks(root, "referit", "test"), JSON)


def own_lines(folder: Path) -> Case:
    Image.new("RGB", (12, 10)).save(folder / "1.png")
    path, common = folder / "refs.jsonl", {"image": "1.png", "split": "train", "text": ["left", "man"]}
    masks = {"mask": "1.png", "polygon": [[2, 3, 6, 3, 6, 8]], "rle": {"size": [10, 12], "counts": [60, 60]}}

    def read() -> list:
        own = OwnData("own", path, None, None)
        return own.read_training_expressions() + [ref.mask() for ref in own.read_refs("train")]

    return Case(path, read, LINES, [_dump_lines([{**common, key: value} for key, value in masks.items()])])


def mat_masks(folder: Path) -> Case:
    segments = {"other": np.ones((2, 2)), "segimg_t": np.eye(9, 7, dtype=np.int16)}
    wholes = [_written(scipy.io.savemat, segments, do_compression=packed) for packed in (False, True)]
    path = folder / "3_1.mat"
    return Case(path, lambda: read_mat_mask(path), wholes=wholes)


def _read_sample(folder: Path) -> tuple:
    split = PreparedSplit(folder, "val")
    return split.text(0), split.sample(0), split.ref(0)


def compact_npz(folder: Path) -> Case:
    prepared = write_folder(folder)
    return Case(prepared / "val_batch/unc_val_0.npz", lambda: _read_sample(prepared), NPZ)


def self_contained_npz(folder: Path) -> Case:
    (folder / "val_batch").mkdir()
    whole = {"text_batch": np.arange(20), "sent_batch": ["left"], "im_name_batch": "x"}
    whole |= {"im_batch": np.ones((9, 8, 3), np.uint8), "mask_batch": np.eye(9, 8, dtype=bool)}
    return Case(folder / "val_batch/unc_val_0.npz", lambda: _read_sample(folder), NPZ, [_dump_arrays(whole)])


def meta(folder: Path) -> Case:
    prepared = write_folder(folder)

    def read():
        split = PreparedSplit(prepared, "val")
        return split.image_size, vocabulary_of(split), embeddings_file(split), split.sample(0)

    return Case(prepared / "meta.json", read, JSON)


def vocabulary(folder: Path) -> Case:
    path = folder / "vocabulary.txt"
    whole = "\n".join([*SPECIAL_WORDS, "man", "left", "größe"]).encode()
    wholes = [whole, b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n")]
    return Case(path, lambda: Vocabulary.load(path).ids("a"), wholes=wholes)


def glove(folder: Path) -> Case:
    path = folder / "glove.txt"
    whole = b"the 0.5 -1.25 3\nman 1e-3 2 .5\n. . 0 0 0\n"
    return Case(path, lambda: read_glove(path, ["man", "the"]), wholes=[whole, b"3 3\n" + whole])


def embeddings(folder: Path) -> Case:
    path = folder / "Gref_emb.npy"
    np.save(path, np.ones((5, 3), np.float32))
    return Case(path, lambda: read_embeddings(path, 5, 3))


def checkpoint(folder: Path) -> Case:
    path = folder / "last.pth"
    training = {"trainer": {"optimizer": {"state": {0: torch.ones(3)}}, "step": 3}, "options": {}, "log_bytes": 5}
    write_checkpoint(path, training=training)
    return Case(path, lambda: load_restr(path), TORCH)


def reference_checkpoint(folder: Path) -> Case:
    path, weights = folder / "unc_25000.pth", to_reference(tiny_model())
    wholes = [_dump_torch(weights), _dump_torch({"model": weights})]
    return Case(path, lambda: load_restr(path, reference=REFERENCE), TORCH, wholes)


def vit(folder: Path, kind: str, values: Values | None = None) -> Case:
    path = test_pretrained.save(folder, kind, test_pretrained.source(depth=1))
    return Case(path, lambda: test_pretrained.loaded(path, depth=1), values)


def _encoded(image: Image.Image, kind: str, mode: str | None = None, **options) -> bytes:
    return _written(image.convert(mode).save if mode else image.save, kind, **options)


def image(folder: Path) -> Case:
    path = folder / "COCO_train2014_000000000001.jpg"
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 9, 3), np.uint8))
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
    wholes = [_encoded(noise, kind) for kind in kinds]
    wholes += [_encoded(noise, "PNG", mode) for mode in ("P", "LA", "I;16")]
    wholes += [_encoded(noise, "JPEG", mode) for mode in ("L", "CMYK")]
    wholes += [_encoded(noise, "TIFF", compression=way) for way in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    return Case(path, lambda: read_image(path), wholes=wholes)


def mask(folder: Path) -> Case:
    path, drawn = folder / "7.png", Image.fromarray(np.eye(9, 12, dtype=bool))
    wholes = [_encoded(drawn, "PNG", mode) for mode in ("1", "L", "P", "LA", "RGBA")]
    wholes.append(_encoded(drawn, "PNG", "RGB", transparency=(0, 0, 0)))
    return Case(path, lambda: read_mask_png(path), wholes=wholes)


def metrics(folder: Path) -> Case:
    path = write_result(folder / "eval", [SampleScore(0, "unc_val_0", 4, 9, 1, "red", "i")])
    return Case(path, lambda: read_result(path), JSON)


def log(folder: Path) -> Case:
    path = folder / "log.jsonl"
    lines = [{"kind": "train", "step": i, "loss": 0.5, "lr": 1e-5} for i in (1, 2)] + [{"kind": "val", "step": 2}]
    return Case(path, lambda: read_log(path), LINES, [_dump_lines(lines)])


READERS = {
    "refs": refs, "instances": instances, "queries": queries, "own lines": own_lines, "mat": mat_masks,
    "compact npz": compact_npz, "self-contained npz": self_contained_npz, "meta": meta, "vocabulary": vocabulary,
    "GloVe": glove, "embeddings": embeddings, "checkpoint": checkpoint, "reference checkpoint": reference_checkpoint,
    "ViT .pth": partial(vit, kind="model", values=TORCH), "ViT .npz": partial(vit, kind="npz", values=NPZ),
    "ViT .safetensors": partial(vit, kind="safetensors"), "image": image, "mask": mask, "metrics": metrics, "log": log,
}  # fmt: skip
