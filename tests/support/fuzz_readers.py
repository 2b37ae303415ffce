"""Every reader of a file that a stranger may have made: a whole file for each, and how it is read."""

import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from models.checkpoint import checkpoint_values, read_checkpoint
from prepare.glove import read_glove
from prepare.masks import read_mat_mask
from prepare.own_data import OwnData
from prepare.public import read_refs
from tests.models import test_pretrained
from tests.support.memory_split import write_folder
from tests.support.report_case import write_result
from tests.support.small_model import REFERENCE, tiny_model, write_checkpoint
from tests.support.tiny_set import make_tiny_set
from utils.files.images import read_image, read_mask_png
from utils.hub import write_files
from utils.prepared import PreparedSplit
from utils.text import SPECIAL_WORDS, Vocabulary, read_embeddings


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


def public(folder: Path, file: str, dataset: str, split: str, values: Values) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    return Case(root / file, lambda: [ref.mask() for ref in read_refs(root, dataset, split)], values)


def refs(folder: Path) -> Case:
    case = public(folder, "external/refer/data/refcocog/refs(google).p", "Gref", "val", PICKLE)
    value = pickle.loads(case.wholes[0])
    case.wholes = [pickle.dumps(value, protocol) for protocol in (0, 2, 4)]
    return case


def instances(folder: Path) -> Case:
    case = public(folder, "external/refer/data/refcocog/instances.json", "Gref", "val", JSON)
    value = json.loads(case.wholes[0])
    value["annotations"][-1]["segmentation"] = {"size": [80, 60], "counts": [300, 90, 4410]}
    case.wholes = [_dump_json(value)]
    return case


def queries(folder: Path) -> Case:
    return public(folder, "data/referit/referit_query_test.json", "referit", "test", JSON)


def own_lines(folder: Path) -> Case:
    Image.new("RGB", (12, 10)).save(folder / "1.png")
    path, common = folder / "refs.jsonl", {"image": "1.png", "split": "train", "text": ["left", "man"]}
    masks = {"mask": "1.png", "polygon": [[2, 3, 6, 3, 6, 8]], "rle": {"size": [10, 12], "counts": [60, 60]}}

    def read() -> list:
        own = OwnData("own", path, None, None)
        return own.read_training_expressions() + [ref.mask() for ref in own.read_refs("train")]

    return Case(path, read, LINES, [_dump_lines([{**common, key: value} for key, value in masks.items()])])


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
        return split.image_size, split.vocabulary(), split.embeddings_file(), split.sample(0)

    return Case(prepared / "meta.json", read, JSON)


def checkpoint(folder: Path) -> Case:
    path = folder / "last.pth"
    training = {"trainer": {"optimizer": {"state": {0: torch.ones(3)}}, "step": 3}, "options": {}, "log_bytes": 5}
    write_checkpoint(path, training=training)
    return Case(path, lambda: load_restr(path), TORCH)


def reference_checkpoint(folder: Path) -> Case:
    path, weights = folder / "unc_25000.pth", to_reference(tiny_model())
    wholes = [_dump_torch(weights), _dump_torch({"model": weights})]
    return Case(path, lambda: load_restr(path, reference=REFERENCE), TORCH, wholes)


def hub_files(folder: Path, name: str, values: Values | None = None) -> Case:
    write_checkpoint(folder / "best.pth")
    write_files(folder, checkpoint_values(read_checkpoint(folder / "best.pth")))
    return Case(folder / name, lambda: load_restr(folder / "model.safetensors"), values)


def vit(folder: Path, kind: str, values: Values | None = None) -> Case:
    path = test_pretrained.save(folder, kind, test_pretrained.source(depth=1))
    return Case(path, lambda: test_pretrained.loaded(path, depth=1), values)


def metrics(folder: Path) -> Case:
    path = write_result(folder / "eval", [SampleScore(0, "unc_val_0", 4, 9, 1, "red", "i")])
    return Case(path, lambda: read_result(path), JSON)


SEGMENTS = {"other": np.ones((2, 2)), "segimg_t": np.eye(9, 7, dtype=np.int16)}
MATS = [_written(scipy.io.savemat, SEGMENTS, do_compression=packed) for packed in (False, True)]
WORDS = "\n".join([*SPECIAL_WORDS, "man", "left", "größe"]).encode()
MARKED = b"\xef\xbb\xbf" + WORDS.replace(b"\n", b"\r\n")
GLOVE = b"the 0.5 -1.25 3\nman 1e-3 2 .5\n. . 0 0 0\n"
LOG = [{"kind": "train", "step": i, "loss": 0.5, "lr": 1e-5} for i in (1, 2)] + [{"kind": "val", "step": 2}]
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 9, 3), np.uint8))
MASK = Image.fromarray(np.eye(9, 12, dtype=bool))
IMAGES = [
    *(_written(NOISE.save, kind) for kind in "JPEG PNG GIF WEBP BMP PPM TIFF JPEG2000 AVIF".split()),
    *(_written(NOISE.convert(mode).save, "PNG") for mode in ("P", "LA", "I;16")),
    *(_written(NOISE.convert(mode).save, "JPEG") for mode in ("L", "CMYK")),
    *(_written(NOISE.save, "TIFF", compression=way) for way in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
]
MASKS = [
    *(_written(MASK.convert(mode).save, "PNG") for mode in ("1", "L", "P", "LA", "RGBA")),
    _written(MASK.convert("RGB").save, "PNG", transparency=(0, 0, 0)),
]
ALONE = {  # files that need no other file: name, reader, whole files
    "mat": ("3_1.mat", read_mat_mask, MATS),
    "vocabulary": ("words.txt", lambda path: Vocabulary.load(path).ids("a"), [WORDS, MARKED]),
    "GloVe": ("glove.txt", lambda path: read_glove(path, ["man", "the"]), [GLOVE, b"3 3\n" + GLOVE]),
    "embeddings": ("emb.npy", lambda path: read_embeddings(path, 5, 3), [_written(np.save, np.ones((5, 3), "f4"))]),
    "image": ("COCO_train2014_000000000001.jpg", read_image, IMAGES),
    "mask": ("7.png", read_mask_png, MASKS),
    "log": ("log.jsonl", read_log, [_dump_lines(LOG)], LINES),
}


def alone(folder: Path, name: str, read: Callable[[Path], Any], wholes: list, values: Values | None = None) -> Case:
    return Case(folder / name, lambda: read(folder / name), values, wholes)


FUNCTIONS = (refs, instances, queries, own_lines, compact_npz, self_contained_npz, meta)
READERS = {function.__name__: function for function in (*FUNCTIONS, checkpoint, reference_checkpoint, metrics)}
READERS |= {name: lambda folder, parts=parts: alone(folder, *parts) for name, parts in ALONE.items()}
READERS |= {
    "ViT .pth": lambda folder: vit(folder, "model", TORCH),
    "ViT .npz": lambda folder: vit(folder, "npz", NPZ),
    "hub config.json": lambda folder: hub_files(folder, "config.json", JSON),
    "hub .safetensors": lambda folder: hub_files(folder, "model.safetensors"),
    "ViT .safetensors": lambda folder: vit(folder, "safetensors"),
}
