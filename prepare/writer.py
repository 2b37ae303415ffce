"""The writer of prepared data: work is split by image, and can stop and go on at any point.

Every file gets its name only when whole, its content follows from the annotations alone, and expressions are numbered
before the work is shared out: so the folder is the same, byte for byte, however often it was interrupted, over however
many processes and shards.
"""

import hashlib
import io
import itertools
import json
import os
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prepare.folder import begun_split, claim, folder_path, new_meta, record_split, remove_stale, sync_file_system
from prepare.masks import require_size
from prepare.own_data import OwnData
from prepare.png import encode_png
from prepare.public import read_refs
from prepare.ref import Ref, noting
from prepare.workers import run_all
from utils.datasets import DATASETS
from utils.errors import InputError
from utils.files.images import MAX_IMAGE_BYTES, read_image
from utils.files.reading import BUILD_REMEDY, read_bytes
from utils.files.writing import atomic_write
from utils.geometry import fit_inside, pad
from utils.image_index import ImageIndex
from utils.prepared import NO_TARGET, SIZES, SUMS_KEY, PreparedSplit, SplitFiles, is_train, texts_digest
from utils.resample import resize_image, resize_mask
from utils.text import Vocabulary, tokenize

_IMAGE_REMEDY = "download it again (data/README.md)"
VERIFIED_AT_ONCE = 32  # expressions
MANY_UNKNOWN = 0.1  # share of the words; with the published vocabularies it is a few in a hundred
Sizes = dict[Path, dict[str, int]]  # folder -> name -> bytes


@dataclass(frozen=True)
class Job:
    """The unit of work: an image with its refs of the split, each with its numbered expressions."""

    refs: tuple[tuple[Ref, tuple[tuple[int, str], ...]], ...]

    @property
    def image(self) -> Path:
        return self.refs[0][0].image_path

    def expressions(self) -> int:
        return sum(len(sentences) for _, sentences in self.refs)

    def __len__(self) -> int:
        return len(self.refs)


def plan(refs: list[Ref], source: Path) -> list[Job]:
    """Refs grouped by image, in order of first appearance; expressions numbered in the order of the file `source`.

    Empty expressions are skipped. Raises InputError if nothing is left.
    """
    by_image: dict[Path, list] = {}
    numbers = itertools.count()
    for ref in refs:
        if sentences := tuple((next(numbers), text) for text in ref.sentences if text.strip()):
            by_image.setdefault(ref.image_path, []).append((ref, sentences))
    if not by_image:
        raise InputError(f"{source}: the split has no expressions")
    return [Job(tuple(group)) for group in by_image.values()]


def image_index(jobs: list[Job]) -> ImageIndex:
    """The image of each expression."""
    names = {i: ref.image_name for job in jobs for ref, sentences in job.refs for i, _ in sentences}
    return ImageIndex.of(names[i] for i in range(len(names)))


def split_entry(jobs: list[Job]) -> dict:
    """What meta.json says of a split, but for `complete`.

    The digests are of all that its files follow from; images and mask files, too many to read here, stand by their
    bytes.
    """
    texts = sorted((i, ref.image_name, text) for job in jobs for ref, pairs in job.refs for i, text in pairs)
    annotations, files = hashlib.sha256(), hashlib.sha256()
    for job in jobs:
        paths = [job.image]
        for ref, sentences in job.refs:
            outline = ref.segmentation
            if isinstance(outline, Path):
                paths.append(outline)
                outline = outline.name
            facts = ref.ref_id, ref.image_name, ref.size, outline, sentences
            annotations.update(json.dumps(facts).encode() + b"\n")
        files.update(json.dumps([path.stat().st_size for path in paths]).encode() + b"\n")
    without = sum(len(pairs) for job in jobs for ref, pairs in job.refs if ref.no_target)
    return {
        "refs": sum(len(job.refs) for job in jobs),
        "expressions": len(texts),
        "images": len(jobs),
        "texts_sha256": texts_digest((image, text) for _, image, text in texts),
        "annotations_sha256": annotations.hexdigest(),
        "files_sha256": files.hexdigest(),
        **({NO_TARGET: without} if without else {}),
    }


@dataclass(frozen=True)
class BuildOptions:
    """What `build_batches.py` was asked for."""

    root: Path
    dataset: str
    split: str
    size: tuple[int, int]  # of the canvas
    workers: int
    shard: tuple[int, int] = (1, 1)  # (i, n): the i-th of n parts, counted from 1
    self_contained: bool = False
    skip_empty: bool = False
    vocabulary: Path | None = None  # default: the data set's own, data/vocabulary_NAME.txt
    own: OwnData | None = None  # of the user, with the name `dataset`

    @property
    def own_vocabulary(self) -> Path:
        """Where build_vocab.py puts the data set's own."""
        return (self.own or DATASETS[self.dataset]).vocabulary_path(self.root)

    @property
    def sources(self) -> tuple[Path, Path]:
        """The files that give expressions, and image sizes: for messages."""
        if self.own:
            return self.own.refs, self.own.instances or self.own.refs
        refs = DATASETS[self.dataset].refs_path(self.root, self.split)
        return refs, refs.with_name("instances.json")

    def read_refs(self) -> list[Ref]:
        """The refs of the split. Raises InputError."""
        if self.own:
            return self.own.read_refs(self.split)
        return read_refs(self.root, self.dataset, self.split, self.skip_empty)


class Built(NamedTuple):
    """What a run leaves behind."""

    folder: Path
    report: list[str]  # lines for the user: what there is now, and warnings


def build(options: BuildOptions) -> Built:
    """Build one split, or one shard of it, or what is missing of it.

    Raises InputError for whatever the user can fix, OSError for a full or read-only disk.
    """
    started = time.monotonic()
    vocabulary_path = options.vocabulary or options.own_vocabulary
    vocabulary = Vocabulary.load(vocabulary_path)
    refs = options.read_refs()
    jobs = plan(refs, options.sources[0])
    folder = folder_path(options.root, options.dataset, options.size)
    files, sharded = SplitFiles(folder, options.dataset, options.split), options.shard != (1, 1)
    meta = new_meta(options.dataset, options.size, vocabulary, vocabulary_path.name, options.self_contained)
    claim(folder, meta, vocabulary)
    writer = Writer(files, options.size, vocabulary, options.self_contained, options.sources[1])
    entry = split_entry(jobs)
    with begun_split(files, entry, sharded) as meta:
        for path in writer.folders:
            path.mkdir(exist_ok=True)
            remove_stale(path, seconds=600 if sharded else 0)  # younger ones may be another machine's
        sizes, left, empty = _build(writer, meta, entry, jobs, options)
    size, count = sum(sum(names.values()) for names in sizes.values()), entry["expressions"]
    contents = f"{entry['refs']:,} refs, {count:,} expressions, {entry['images']:,} images"
    room = f"{size / 2**20:,.1f} MiB, {size / count / 1e3:,.1f} kB an expression"
    report = [f"{folder}: {options.split} has {contents}; {room}; {time.monotonic() - started:,.1f} s"]
    report += [f"warning: {text}" for text in _warnings(options, writer, refs, jobs)]
    if empty := sorted(itertools.chain(*empty)):
        report.append(f"warning: {len(empty):,} refs have a mask without any pixel, such as {files.name(empty[0])}")
    if left:
        missing = sum(job.expressions() for job in left)
        report.append(f"not complete yet: {missing:,} expressions belong to other shards")
    return Built(folder, report)


def _build(
    writer: "Writer", meta: dict, entry: dict, jobs: list[Job], options: BuildOptions
) -> tuple[Sizes, list[Job], list[list[int]]]:
    """Write what the split lacks. Returns sizes of its files, the jobs that it still lacks, and what `write` returned.

    Files that are empty, as a power cut leaves them, count as lacking; if others were cut off, which the sum of sizes
    shows, all files are compared with what they have to be.
    """
    files, (number, shards) = writer.files, options.shard
    index = image_index(jobs).encoded(entry["texts_sha256"])
    was_complete = meta["splits"][files.split]["complete"]
    sizes = writer.sizes()
    lacking, mine = writer.missing(jobs, sizes), jobs[number - 1 :: shards]
    recorded = meta.get(SIZES, {}).get(files.split)
    cut = not lacking and was_complete and recorded not in (None, writer.total(jobs, sizes) + len(index))
    todo = mine if cut else writer.missing(mine, sizes)
    if was_complete and (lacking or cut):
        record_split(files, entry, None)
    done = sum(map(len, mine)) - sum(map(len, todo))
    bar = {"desc": f"{files.dataset} {files.split}", "unit": "refs"}
    try:
        empty = run_all(writer.write, todo, options.workers, len, done, **bar)
    except InputError:  # a broken image or mask, which will be another file when it is fixed
        record_split(files, {**entry, "files_sha256": None}, None)
        raise
    if todo:
        sizes = writer.sizes()
    left = writer.missing(jobs, sizes)
    if not left:
        writer.write_file(files.index, index, durable=True)
    if not left and not (was_complete and not lacking and not cut):
        sync_file_system(files.folder)
        record_split(files, entry, writer.total(jobs, sizes) + len(index))
    return sizes, left, empty


def _warnings(options: BuildOptions, writer: "Writer", refs: list[Ref], jobs: list[Job]) -> Iterator[str]:
    texts = [pair for job in jobs for _, pairs in job.refs for pair in pairs]
    tokens = [tokenize(text) for _, text in texts]
    wordless = [number for (number, _), words in zip(texts, tokens, strict=True) if not words]  # a lone "."
    if wordless:
        yield f"{len(wordless):,} expressions have no words, such as {writer.files.name(wordless[0])}"
    nameless = [ref.ref_id for ref in refs if not any(map(str.strip, ref.sentences))]
    if nameless:
        yield f"{len(nameless):,} refs have no expression and are left out, such as ref {nameless[0]}"
    unknown = sum(len(writer.vocabulary.unknown(text)) for _, text in texts) / max(1, sum(map(len, tokens)))
    if unknown > MANY_UNKNOWN:
        alike = [other for other in DATASETS.values() if other.vocabulary_path(options.root) == options.own_vocabulary]
        there = [other.name for other in alike if other.refs_path(options.root, other.train_split).exists()]
        names = f"{options.dataset} --refs {options.own.refs}" if options.own else " ".join(there)
        command = f"python build_vocab.py -d {names} --root {options.root}"
        remedy = f"move {options.own_vocabulary} away, make one of your own words ({command}) and build anew"
        yield f"{unknown:.0%} of the words are not in the vocabulary: give another --vocabulary, or {remedy}"
    if flat := [ref for ref in refs if ref.left_out]:
        number = sum(ref.left_out for ref in flat)
        yield f"{number:,} polygons of fewer than three points are not drawn, such as of ref {flat[0].ref_id}"


def damage(folder: Path, split: str, workers: int) -> list[str]:
    """What is wrong with the files of a complete split, a line each, sorted.

    Every file is read as training and evaluation read it, with its check sum. Raises InputError where there is no such
    split.
    """
    data = PreparedSplit(folder, split)
    data.vocabulary()
    numbers = range(len(data))
    jobs = [numbers[i : i + VERIFIED_AT_ONCE] for i in numbers[::VERIFIED_AT_ONCE]]
    found = run_all(partial(_faults, data), jobs, workers, len, desc=f"{data.dataset} {split}", unit="expr")
    index = SplitFiles(folder, data.dataset, split).index
    if index.exists() and data.stored_index() is None:  # of version 1.0 there is none
        found.append([f"{index}: is damaged, or of other expressions; {BUILD_REMEDY}"])
    return sorted(set().union(*found))


def _faults(split: PreparedSplit, numbers: Sequence[int]) -> list[str]:
    faults: list[str] = []
    for i in numbers:
        with noting(faults):
            split.read(i)
    return faults


@dataclass(frozen=True)
class Writer:
    """Writes the files of jobs; goes to worker processes."""

    files: SplitFiles
    size: tuple[int, int]
    vocabulary: Vocabulary
    self_contained: bool
    sizes_from: Path  # the file with the images' sizes, for messages

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        return self.files.folders[:1] if self.self_contained else self.files.folders

    def sizes(self) -> Sizes:
        """Bytes of the files that are there."""
        return {folder: {item.name: item.stat().st_size for item in os.scandir(folder)} for folder in self.folders}

    def missing(self, jobs: list[Job], sizes: Sizes) -> list[Job]:
        """The jobs of which a file is not there, or is empty."""
        return [job for job in jobs if not all(sizes[path.parent].get(path.name) for path in self._paths(job))]

    def total(self, jobs: list[Job], sizes: Sizes) -> int:
        """Bytes of all files of jobs that miss none."""
        return sum(sizes[path.parent][path.name] for job in jobs for path in self._paths(job))

    def _paths(self, job: Job) -> Iterator[Path]:
        for ref, sentences in job.refs:
            for number, _ in sentences:
                yield self.files.npz(number)
            if not self.self_contained:
                yield self._label_path(ref)
        if not self.self_contained:
            yield self._image_path(job)

    def _image_path(self, job: Job) -> Path:
        suffix = ".png" if is_train(self.files.split) else job.image.suffix
        return self.files.images / f"{job.refs[0][0].image_name}{suffix}"

    def _label_path(self, ref: Ref) -> Path:
        return self.files.labels / f"{ref.ref_id}.png"

    def write(self, job: Job) -> list[int]:
        """Write the files of a job but those that are as they have to be.

        Returns the number of an expression of each ref whose mask is empty, though it should have an object.
        Raises InputError for a broken image or mask, and where sizes disagree.
        """
        data = read_bytes(job.image, MAX_IMAGE_BYTES, "image", _IMAGE_REMEDY)
        image = read_image(data, job.image, _IMAGE_REMEDY)
        original = image.shape[:2]
        fit = fit_inside(*original, self.size) if is_train(self.files.split) else None
        if fit:
            image = resize_image(image, fit.size)
        if not self.self_contained:
            data = encode_png(image) if fit else data
            self.write_file(self._image_path(job), data)
            image_sum = zlib.crc32(data)
        empty = []
        for ref, sentences in job.refs:
            mask = self._mask(ref, original)
            if not mask.any() and not ref.no_target:
                empty.append(sentences[0][0])
            if fit:
                mask = resize_mask(mask, fit.size)
            if not self.self_contained:
                label = encode_png(mask)
                self.write_file(self._label_path(ref), label)
                pictures = {"image_file": self._image_path(job).name, "label_file": self._label_path(ref).name}
                pictures[SUMS_KEY] = np.array([image_sum, zlib.crc32(label)], np.uint32)
            elif fit:
                pictures = {"im_batch": pad(image, self.size), "mask_batch": pad(mask, self.size)}
            else:
                pictures = {"im_batch": image, "mask_batch": mask}
            for number, sentence in sentences:
                self._write_npz(number, ref, sentence, pictures)
        return empty

    def _mask(self, ref: Ref, size: tuple[int, int]) -> np.ndarray:
        """The ref's mask, which must be of the image's size (height, width)."""
        if ref.size:
            require_size(ref.image_path, size, ref.size, self.sizes_from)
        mask = ref.mask()
        require_size(ref.image_path, size, mask.shape, ref.segmentation)
        return mask

    def _write_npz(self, number: int, ref: Ref, sentence: str, pictures: dict) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the summary names expressions without words
            ids = self.vocabulary.ids(sentence)
        archive = io.BytesIO()  # in memory, as writing an archive goes back and forth in it
        np.savez(archive, text_batch=ids, sent_batch=[sentence], im_name_batch=ref.image_name, **pictures)
        self.write_file(self.files.npz(number), archive.getvalue())

    @staticmethod
    def write_file(path: Path, data: bytes, durable: bool = False) -> None:
        """Unless the file is so already: an earlier run may have written it, also with another zlib, or lost a part."""
        if path.exists() and path.read_bytes() == data:
            return
        with atomic_write(path, durable) as file:
            file.write(data)
