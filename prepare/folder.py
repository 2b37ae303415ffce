"""Writing the prepared folder's meta.json: several builds at once, locks, what killed ones left."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils.datasets import DATASETS
from utils.errors import InputError
from utils.files.writing import TEMPORARY_PREFIX, lock_file, opened_folder, write_json
from utils.prepared import FORMAT, META, SIZES, VERSION, VOCABULARY, SplitFiles, read_meta, size_name
from utils.text import TEXT_LENGTH, Vocabulary

LOCK = ".lock"


def folder_path(root: Path, dataset: str, size: tuple[int, int]) -> Path:
    """Where build_batches.py puts the prepared data of a data set: data/mscoco/unc_480_batch below `root`."""
    family = DATASETS[dataset].family if dataset in DATASETS else "custom"
    return Path(root) / "data" / family / f"{dataset}_{size_name(size)}_batch"


def new_meta(dataset: str, size: tuple[int, int], vocabulary: Vocabulary, source: str, self_contained: bool) -> dict:
    """meta.json of a folder without splits."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset,
        "image_size": list(size),
        "text_length": TEXT_LENGTH,
        "vocabulary": {"file": VOCABULARY, "source": source, "size": len(vocabulary), "sha256": vocabulary.sha256},
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
                raise InputError(f"{folder}: holds data of another program (no {META}); move them away")
            write_json(folder / META, wanted)
        else:
            _require_same(folder, there, wanted)
        with contextlib.suppress(InputError):  # it is not there, or damaged
            if Vocabulary.load(folder / VOCABULARY).sha256 == vocabulary.sha256:
                return
        vocabulary.save(folder / VOCABULARY)


def _require_same(folder: Path, *metas: dict) -> None:
    """Of a folder that is there and the one wanted. The source of the vocabulary may differ in name, not in content."""
    facts = {
        "data set": [meta["dataset"] for meta in metas],
        "image size": [size_name(tuple(meta["image_size"])) for meta in metas],
        "vocabulary (SHA-256)": [meta["vocabulary"]["sha256"][:16] for meta in metas],
        "--self_contained": [meta["self_contained"] for meta in metas],
    }
    if differing := [f"{key} {old}, now {new}" for key, (old, new) in facts.items() if old != new]:
        raise InputError(
            f"{folder}: was built with {'; '.join(differing)}; use the same, or move the folder away to build anew"
        )


@contextlib.contextmanager
def begun_split(files: SplitFiles, entry: dict, sharded: bool) -> Iterator[dict]:
    """Keep builds from other sources out of a split while the block runs; yields meta.json, which has the split.

    What a build from other sources left half-done is removed first, unless this is one shard of many.
    Raises InputError where the split was built from something else and stays.
    """
    with (files.folder / f".{files.split}{LOCK}").open("ab") as builds:
        with _locked(files.folder):
            meta = _there(files)
            old = meta["splits"].get(files.split)
            if not old or not _same_sources(old, entry):
                if old and any(path.exists() for path in files.folders):
                    _discard(files, builds, old, entry, sharded)
                meta = _recorded(files, meta, entry, None)
            lock_file(builds, fcntl.LOCK_SH)
        yield meta


def _discard(files: SplitFiles, builds: IO, old: dict, entry: dict, sharded: bool) -> None:
    sources = "other expressions, masks or images than there are now"
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
        raise InputError(f"{files.folder / META}: was removed while data were prepared; run the same command again")
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
    """Remove partial files at least `seconds` old whose writer has exited."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # whole by now, or removed by another
            if time.time() - path.stat().st_mtime >= seconds and not _is_running(path.name):
                path.unlink()


def _is_running(name: str) -> bool:
    """Whether the process that a half-written file is named after is there."""
    try:
        os.kill(int(name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]), 0)
    except PermissionError:  # another user's
        return True
    except (ValueError, OverflowError, ProcessLookupError):  # it names none
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: an empty hidden file, which stays. Whatever was half-written under it is removed."""
    with (folder / LOCK).open("ab") as file:
        lock_file(file, fcntl.LOCK_EX)
        for stale in folder.glob(f"{TEMPORARY_PREFIX}*"):
            stale.unlink(missing_ok=True)
        yield


def sync_file_system(folder: Path) -> None:
    """Wait until the disk has all that was written to the file system of `folder`. Raises OSError."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # not Linux
        os.sync()
        return
    with opened_folder(folder) as handle:
        if syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
