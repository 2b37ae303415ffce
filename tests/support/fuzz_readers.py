"""Every reader of a file that a stranger may have made: a whole file for each, and how it is read."""

import copy
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eval.plot import read_log
from eval.results import read_result
from models import load_restr, to_reference
from models.restr import build_restr
from prepare.glove import read_glove
from prepare.masks import read_mat_mask
from prepare.own_data import OwnData
from prepare.public import read_refs
from tests.eval import test_tables
from tests.models import test_pretrained
from tests.models.test_checkpoint import save as save_model
from tests.prepare.test_segmentation import mat
from tests.support.eval_folder import write_folder
from tests.support.mutate import ARRAYS
from tests.support.small_model import CONFIG, REFERENCE
from tests.support.tiny_set import make_tiny_set
from utils.files.images import read_image, read_mask_png
from utils.prepared import PreparedSplit
from utils.text import SPECIAL_WORDS, Vocabulary, read_embeddings


@dataclass
class Case:
    """A file as it should be, in one or several forms, and its reader. `load` and `dump`: to change its values."""

    path: Path
    wholes: list[bytes]
    read: Callable[[], Any]
    load: Callable[[bytes], Any] | None = None
    dump: Callable[[Any], bytes] | None = None
    extra: tuple = ()  # values to put in


def _dump_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _json_case(path: Path, read: Callable[[], Any], extra: tuple = ()) -> Case:
    return Case(path, [path.read_bytes()], read, json.loads, _dump_json, extra)


def _masks(root: Path, dataset: str, split: str) -> list:
    return [ref.mask() for ref in read_refs(root, dataset, split)]


def refs(folder: Path) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    path = root / "external/refer/data/refcocog/refs(google).p"
    value = pickle.loads(path.read_bytes())
    wholes = [pickle.dumps(value, protocol) for protocol in (0, 2, 4)]
    return Case(path, wholes, lambda: _masks(root, "Gref", "val"), pickle.loads, pickle.dumps)


def instances(folder: Path) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    path = root / "external/refer/data/refcocog/instances.json"
    value = json.loads(path.read_text())
    value["annotations"][-1]["segmentation"] = {"size": [80, 60], "counts": [300, 90, 4410]}
    path.write_text(json.dumps(value))
    shapes = ([[1, 1, 5, 5]], [[1e9, 0, 5, 5, 9, 0]], {"size": [80, 60], "counts": "PPYo1"}, [0, 4800])
    return _json_case(path, lambda: _masks(root, "Gref", "val"), shapes)


def queries(folder: Path) -> Case:
    root = make_tiny_set(folder, images=2, refs=1)
    return _json_case(root / "data/referit/referit_query_test.json", lambda: _masks(root, "referit", "test"))


def own_lines(folder: Path) -> Case:
    Image.new("RGB", (12, 10)).save(folder / "1.png")
    common = {"image": "1.png", "split": "train", "text": ["left", "man"]}
    outlines = {"mask": "1.png", "polygon": [[2, 3, 6, 3, 6, 8]], "rle": {"size": [10, 12], "counts": [60, 60]}}
    lines = [{**common, key: value} for key, value in outlines.items()]
    path = folder / "refs.jsonl"

    def dump(value: Any) -> bytes:
        return b"\n".join(_dump_json(line) for line in (value if isinstance(value, list) else [value]))

    def read() -> list:
        own = OwnData("own", path, None, None)
        return own.read_training_expressions() + [ref.mask() for ref in own.read_refs("train")]

    return Case(path, [dump(lines)], read, lambda _: copy.deepcopy(lines), dump)


def mat_masks(folder: Path) -> Case:
    segments = {"other": np.ones((2, 2)), "segimg_t": np.eye(9, 7, dtype=np.int16)}
    path = folder / "3_1.mat"
    return Case(path, [mat(segments), mat(segments, do_compression=True)], lambda: read_mat_mask(path))


def _load_arrays(data: bytes) -> dict:
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


def _dump_arrays(arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays if isinstance(arrays, dict) else {"text_batch": np.array(1)})
    return stream.getvalue()


def _read_sample(folder: Path) -> tuple:
    split = PreparedSplit(folder, "val")
    return split.text(0), split.sample(0), split.ref(0)


def compact_npz(folder: Path) -> Case:
    batches = write_folder(folder)
    path = batches / "val_batch/unc_val_0.npz"
    return Case(
        path, [path.read_bytes()], lambda: _read_sample(batches), _load_arrays, _dump_arrays, tuple(map(_Array, ARRAYS))
    )


def self_contained_npz(folder: Path) -> Case:
    (folder / "val_batch").mkdir()
    path = folder / "val_batch/unc_val_0.npz"
    whole = {"text_batch": np.arange(20), "sent_batch": ["left"], "im_name_batch": "x"}
    whole |= {"im_batch": np.ones((9, 8, 3), np.uint8), "mask_batch": np.eye(9, 8, dtype=bool)}
    case = Case(path, [_dump_arrays(whole)], lambda: _read_sample(folder), _load_arrays, _dump_arrays)
    case.extra = tuple(map(_Array, ARRAYS))
    return case


class _Array:
    """An array that is not taken for a list of things to change."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.array


def meta(folder: Path) -> Case:
    batches = write_folder(folder)

    def read():
        split = PreparedSplit(batches, "val")
        return split.image_size, split.vocabulary(), split.embeddings_file(), split.sample(0)

    return _json_case(batches / "meta.json", read)


def vocabulary(folder: Path) -> Case:
    path = folder / "vocabulary.txt"
    whole = "\n".join([*SPECIAL_WORDS, "man", "left", "größe"]).encode()
    return Case(path, [whole, b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n")], lambda: Vocabulary.load(path).ids("a"))


def glove(folder: Path) -> Case:
    path = folder / "glove.txt"
    whole = b"the 0.5 -1.25 3\nman 1e-3 2 .5\n. . 0 0 0\n"
    return Case(path, [whole, b"3 3\n" + whole], lambda: read_glove(path, ["man", "the"]))


def embeddings(folder: Path) -> Case:
    path = folder / "Gref_emb.npy"
    np.save(path, np.ones((5, 3), np.float32))
    return Case(path, [path.read_bytes()], lambda: read_embeddings(path, 5, 3))


def _load_torch(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def _dump_torch(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _tensors() -> tuple:
    whole = torch.zeros(2, 2, dtype=torch.int64)
    return torch.zeros(0), torch.zeros(1).expand(2**40), whole, torch.ones(3).to_sparse()


def checkpoint(folder: Path) -> Case:
    path = folder / "last.pth"
    training = {"trainer": {"optimizer": {"state": {0: torch.ones(3)}}, "step": 3}, "options": {}, "log_bytes": 5}
    save_model(path, build_restr(CONFIG), training=training)
    return Case(path, [path.read_bytes()], lambda: load_restr(path), _load_torch, _dump_torch, _tensors())


def reference_checkpoint(folder: Path) -> Case:
    path = folder / "unc_25000.pth"
    wholes = [_dump_torch(to_reference(build_restr(CONFIG)))]
    wholes.append(_dump_torch({"model": _load_torch(wholes[0])}))
    return Case(path, wholes, lambda: load_restr(path, reference=REFERENCE), _load_torch, _dump_torch, _tensors())


def _weights(kind: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        path = test_pretrained.save(folder, kind, test_pretrained.source(depth=1))
        case = Case(path, [path.read_bytes()], lambda: test_pretrained.loaded(path, depth=1))
        if kind == "model":
            case.load, case.dump, case.extra = _load_torch, _dump_torch, _tensors()
        if kind == "npz":
            case.load, case.dump, case.extra = _load_arrays, _dump_arrays, tuple(map(_Array, ARRAYS))
        return case

    return make


def _encoded(kind: str, image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image(folder: Path) -> Case:
    path = folder / "COCO_train2014_000000000001.jpg"
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 9, 3), np.uint8))
    pictures = [
        _encoded(kind, picture) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
    ]
    pictures += [_encoded("PNG", picture.convert(mode)) for mode in ("P", "LA", "I;16")]
    pictures += [_encoded("JPEG", picture.convert(mode)) for mode in ("L", "CMYK")]
    pictures += [_encoded("TIFF", picture, compression=way) for way in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    return Case(path, pictures, lambda: read_image(path))


def mask(folder: Path) -> Case:
    path = folder / "7.png"
    drawn = Image.fromarray(np.eye(9, 12, dtype=bool))
    forms = [_encoded("PNG", drawn.convert(mode)) for mode in ("1", "L", "P", "LA", "RGBA")]
    return Case(
        path, [*forms, _encoded("PNG", drawn.convert("RGB"), transparency=(0, 0, 0))], lambda: read_mask_png(path)
    )


def metrics(folder: Path) -> Case:
    path = test_tables.write(folder, "a", "unc", "val", 67.0)
    return _json_case(path, lambda: read_result(path))


def log(folder: Path) -> Case:
    path = folder / "log.jsonl"
    lines = [{"kind": "train", "step": i, "loss": 0.5, "lr": 1e-5} for i in (1, 2)] + [{"kind": "val", "step": 2}]

    def dump(value: Any) -> bytes:
        return b"".join(_dump_json(line) + b"\n" for line in (value if isinstance(value, list) else [value]))

    return Case(path, [dump(lines)], lambda: read_log(path), lambda _: copy.deepcopy(lines), dump)


READERS = {
    "refs": refs, "instances": instances, "queries": queries, "own lines": own_lines, "mat": mat_masks,
    "compact npz": compact_npz, "self-contained npz": self_contained_npz, "meta": meta, "vocabulary": vocabulary,
    "GloVe": glove, "embeddings": embeddings, "checkpoint": checkpoint, "reference checkpoint": reference_checkpoint,
    "ViT .pth": _weights("model"), "ViT .npz": _weights("npz"), "ViT .safetensors": _weights("safetensors"),
    "image": image, "mask": mask, "metrics": metrics, "log": log,
}  # fmt: skip
