"""The layout of a batch folder on disk, and its meta.json (SPEC section 4); the writer and the reader share it."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.errors import InputError, one_line
from utils.file_system import lock_file
from utils.refer import DATASETS
from utils.safe_io import TEMPORARY_PREFIX, read_json, safe_name, write_json
from utils.text import TEXT_LENGTH, Vocabulary

FORMAT, VERSION = "restr-batches", 1
MAX_EXPRESSIONS = 10_000_000  # a file that claims more would take the memory for their order
MAX_CANVAS_SIDE = 8_192  # pixels; no model takes more (models.config.LARGEST, whose import takes PyTorch)
META, VOCABULARY, LOCK = "meta.json", "vocabulary.txt", ".lock"
TEXT_KEYS = ("text_batch", "sent_batch", "im_name_batch")
OWN_FAMILY = "custom"  # the folder of data/ that batches of users' own data go to
SIZES = "bytes"  # of meta.json: of all files of each complete split; not in folders of version 1.0
FILE_KEYS = ("image_file", "label_file")  # beside the texts, in the compact form
SUMS_KEY = "crc32"  # beside these: of the image file and of the mask file, uint32 [2]; not in folders of version 1.0
ARRAY_KEYS = ("im_batch", "mask_batch")  # beside the texts, in the reference's form
META_REMEDY = "move the folder away and build the batches again with build_batches.py"


def is_plain_name(name: Any) -> bool:
    """Whether a data set or a split may have this name, which becomes part of file names and of commands."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w.+-]*", name)) and len(name.encode()) <= 64


def is_train(split: str) -> bool:
    """Splits named so are resized when batches are made; the others keep the original resolution (SPEC section 5)."""
    return "train" in split


def size_name(size: tuple[int, int]) -> str:
    """(480, 480) -> "480"; (480, 640) -> "480x640"."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def folder_path(root: Path, dataset: str, size: tuple[int, int]) -> Path:
    """Where build_batches.py puts the batches of a data set: data/mscoco/unc_480_batch below `root`."""
    family = DATASETS[dataset].family if dataset in DATASETS else OWN_FAMILY
    return Path(root) / "data" / family / f"{dataset}_{size_name(size)}_batch"


def build_command(meta: dict, split: str) -> str:
    """What to type to build or complete a split of this folder."""
    size = ",".join(map(str, meta["image_size"][: 1 if len(set(meta["image_size"])) == 1 else 2]))
    flag = " --self_contained" if meta["self_contained"] else ""
    refs = "" if meta["dataset"] in DATASETS else " --refs FILE"
    return f"python build_batches.py -d {meta['dataset']}{refs} -t {split} --img-size {size}{flag}"


@dataclass(frozen=True)
class SplitFiles:
    """Paths of one split's files."""

    folder: Path
    dataset: str
    split: str

    @property
    def batches(self) -> Path:
        return self.folder / f"{self.split}_batch"

    @property
    def images(self) -> Path:
        return self.folder / f"{self.split}_image"

    @property
    def labels(self) -> Path:
        return self.folder / f"{self.split}_label"

    @property
    def folders(self) -> tuple[Path, Path, Path]:
        return self.batches, self.images, self.labels

    def name(self, number: int) -> str:
        """The name of an expression: "unc_val_17"."""
        return f"{self.dataset}_{self.split}_{number}"

    def npz(self, number: int) -> Path:
        return self.batches / f"{self.name(number)}.npz"


def read_meta(folder: Path | str) -> dict | None:
    """The checked content of a batch folder's meta.json; None for a folder without, which the reference made.

    Raises InputError for a missing folder, and for a file that is damaged or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of batches; make it with build_batches.py")
    path = folder / META
    if not path.exists():
        return None
    meta = read_json(path, "description of a batch folder", META_REMEDY)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: does not describe a batch folder; {META_REMEDY}")
    if meta.get("version") != VERSION:
        version = one_line(meta.get("version"), 20)
        raise InputError(f"{path}: is of version {version}, this program reads {VERSION}; {META_REMEDY}")
    fault = _fault(meta)
    if fault:
        raise InputError(f"{path}: has no valid {fault}; {META_REMEDY}")
    return meta


def _is_count(value: Any, most: int = MAX_EXPRESSIONS) -> bool:
    return type(value) is int and 1 <= value <= most


def _fault(meta: dict) -> str | None:
    """The first entry that is not as it must be."""
    size, vocabulary, splits = meta.get("image_size"), meta.get("vocabulary"), meta.get("splits")
    if not is_plain_name(meta.get("dataset")):
        return "dataset"
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(n, MAX_CANVAS_SIDE) for n in size):
        return "image_size"
    if meta.get("text_length") != TEXT_LENGTH:
        return f"text_length, which is {TEXT_LENGTH}"
    if type(meta.get("self_contained")) is not bool:
        return "self_contained"
    if not isinstance(vocabulary, dict) or not _is_count(vocabulary.get("size")):
        return "vocabulary"
    if vocabulary.get("file") != VOCABULARY or not all(
        isinstance(vocabulary.get(k), str) for k in ("sha256", "source")
    ):
        return "vocabulary"
    if not isinstance(splits, dict):
        return "splits"
    if not isinstance(meta.get(SIZES, {}), dict):
        return SIZES
    for split, entry in splits.items():
        counts = [entry.get(key) for key in ("refs", "expressions", "images")] if isinstance(entry, dict) else [None]
        if not is_plain_name(split) or not all(map(_is_count, counts)) or type(entry.get("complete")) is not bool:
            return f"split {one_line(split, 40)}"
    return None


def new_meta(dataset: str, size: tuple[int, int], vocabulary: Vocabulary, source: str, self_contained: bool) -> dict:
    """meta.json of a folder without splits."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset,
        "image_size": list(size),
        "text_length": TEXT_LENGTH,
        "vocabulary": {
            "file": VOCABULARY,
            "source": source,
            "size": len(vocabulary),
            "sha256": vocabulary.sha256,
        },
        "self_contained": self_contained,
        "splits": {},
    }


def claim(folder: Path, wanted: dict, vocabulary: Vocabulary) -> None:
    """Make the folder with its meta.json and vocabulary, or see that an existing one was made with the same parameters.

    Raises InputError that says what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        there = read_meta(folder)
        if there is None:
            if any(folder.glob("*_batch")):
                raise InputError(f"{folder}: holds batches of another program (no {META}); move them away")
            write_json(folder / META, wanted)
        else:
            _require_same(folder, there, wanted)
        if not _holds(folder / VOCABULARY, vocabulary):
            vocabulary.save(folder / VOCABULARY)


def _holds(path: Path, vocabulary: Vocabulary) -> bool:
    try:
        return Vocabulary.load(path).sha256 == vocabulary.sha256
    except InputError:  # it is not there, or damaged
        return False


def _require_same(folder: Path, there: dict, wanted: dict) -> None:
    """The source of the vocabulary may differ in name, not in content."""

    def facts(meta: dict) -> dict:
        return {
            "data set": meta["dataset"],
            "image size": size_name(tuple(meta["image_size"])),
            "vocabulary (SHA-256)": meta["vocabulary"]["sha256"][:16],
            "--self_contained": meta["self_contained"],
        }

    old, new = facts(there), facts(wanted)
    differing = [f"{key} {old[key]}, now {new[key]}" for key in old if old[key] != new[key]]
    if differing:
        raise InputError(
            f"{folder}: was built with {'; '.join(differing)}; use the same, or move the folder away to build anew"
        )


def texts_digest(texts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of (image name, expression) in the order of their numbers: meta.json has it, evaluation compares it."""
    digest = hashlib.sha256()
    for image, sentence in texts:
        digest.update(json.dumps([image, sentence.rstrip("\0")]).encode() + b"\n")  # NumPy drops zeros at the end
    return digest.hexdigest()


@contextlib.contextmanager
def begun_split(files: SplitFiles, entry: dict, sharded: bool) -> Iterator[dict]:
    """Keep builds from other sources out of a split while the block runs; yields meta.json, which has the split.

    What a build from other sources left half-done is removed first, unless this is one shard of many.
    Raises InputError where the split was built from something else and stays.
    """
    with (files.folder / f".{files.split}{LOCK}").open("ab") as builds:
        with _locked(files.folder):
            meta = _there(files)
            old = meta["splits"].get(files.split, {**entry, "complete": False})
            if not _same_sources(old, entry) and any(path.exists() for path in files.folders):
                _discard(files, builds, old, entry, sharded)
            if not _same_sources(old, entry) or files.split not in meta["splits"]:
                meta = _recorded(files, meta, entry, None)
            lock_file(builds, fcntl.LOCK_SH)
        yield meta


def _discard(files: SplitFiles, builds: IO, old: dict, entry: dict, sharded: bool) -> None:
    sources = "other expressions, outlines or images than there are now"
    if old["complete"] or sharded:
        names = ", ".join(path.name for path in files.folders)
        raise InputError(
            f"{files.folder}: its split {files.split} was built from {sources} ({old['expressions']:,} expressions "
            f"then, {entry['expressions']:,} now), or by an earlier version; remove {names} there and run again"
        )
    try:
        lock_file(builds, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fault = f"another build is at its split {files.split}, from {sources}; wait for it or stop it"
        raise InputError(f"{files.folder}: {fault}") from None
    for path in filter(Path.exists, files.folders):
        shutil.rmtree(path)
    print(f"{files.folder}: its split {files.split}, half-built from {sources}, is built anew")


def record_split(files: SplitFiles, entry: dict, size: int | None) -> None:
    """Set a split's entry in meta.json. Several builds may do so at once; the result does not depend on their order.

    `size`: bytes of all its files; None: it is not complete.
    """
    with _locked(files.folder):
        _recorded(files, _there(files), entry, size)


def _there(files: SplitFiles) -> dict:
    meta = read_meta(files.folder)
    if meta is None:
        raise InputError(f"{files.folder / META}: was removed while batches were built; run the same command again")
    return meta


def _recorded(files: SplitFiles, meta: dict, entry: dict, size: int | None) -> dict:
    """meta.json with the split's entry, written."""
    entry = {**entry, "complete": size is not None}
    meta["splits"] = dict(sorted({**meta["splits"], files.split: entry}.items()))
    sizes = {**meta.get(SIZES, {}), files.split: size}
    meta[SIZES] = {split: size for split, size in sorted(sizes.items()) if size is not None}
    write_json(files.folder / META, meta)
    return meta


def _same_sources(old: dict, new: dict) -> bool:
    """Whether two entries of a split agree; images and masks are not compared after a build that met a broken one."""
    left_out = {"complete"} | {"files_sha256" for entry in (old, new) if entry.get("files_sha256", "") is None}
    return all(old.get(key) == new.get(key) for key in (old.keys() | new.keys()) - left_out)


def remove_stale(folder: Path, seconds: float) -> None:
    """Remove half-written files at least `seconds` old whose process is no more."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # whole by now, or removed by another
            if time.time() - path.stat().st_mtime >= seconds and not _is_running(path.name):
                path.unlink()


def _is_running(name: str) -> bool:
    """Whether the process that a half-written file is named after is there."""
    process = name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: an empty hidden file, which stays. Whatever was half-written under it is removed."""
    with (folder / LOCK).open("ab") as file:
        lock_file(file, fcntl.LOCK_EX)
        for stale in folder.glob(f"{TEMPORARY_PREFIX}*"):
            stale.unlink(missing_ok=True)
        yield


def reference_dataset(folder: Path, split: str) -> tuple[str, int]:
    """(data set, number of expressions) of a split in a folder without meta.json. Raises InputError."""
    batches = folder / f"{safe_name(split, 'split')}_batch"
    if not batches.is_dir():
        raise InputError(f"{batches}: no such folder of batches; make it with build_batches.py")
    names = {path.stem for path in batches.glob(f"*_{split}_*.npz")}
    dataset = min(names, default="").rpartition(f"_{split}_")[0]
    if not names or any(f"{dataset}_{split}_{i}" not in names for i in range(len(names))):
        raise InputError(f"{batches}: its npz files are not numbered from 0 without a gap; {META_REMEDY}")
    return safe_name(dataset, f"{batches}: a file in it"), len(names)
