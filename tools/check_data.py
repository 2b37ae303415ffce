"""Is the data right? Looks at everything that build_batches.py will read, and says what is missing or broken.

    python tools/check_data.py                # the data sets that are there
    python tools/check_data.py -d unc Gref    # these two
    python tools/check_data.py -d unc --deep  # also open every image and draw every mask: minutes
    python tools/check_data.py -d NAME --refs FILE.jsonl     # your own data, all splits
    python tools/check_data.py --overlap      # which splits have images that another data set trains on

Counts refs, expressions and images per split and compares them with the published ones, estimates what the build takes,
and prints where what is missing can be downloaded. A data set of which nothing is there, and that -d does not name, is
shown as "-". Exit code 0: all that is there is right; 1: something is missing, broken or miscounted.
"""

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, from wherever this is run

from prepare.own_data import add_own_data, own_data
from prepare.public import IMAGES_REMEDY, coco_files, read_referit
from prepare.ref import Ref, missing_files, noting, require_distinct_names
from tools.data_sources import needs_of
from tools.overlap import show_overlap
from utils.cli import ArgumentParser, run_main
from utils.datasets import COCO_IMAGES, DATASETS, NAMES, REFERIT, WORDS, Counts, Dataset, short_name
from utils.errors import InputError, one_line
from utils.files.images import read_image
from utils.prepared import is_train
from utils.text import Vocabulary, read_embeddings

Splits = dict[str, list[Ref]]
DRAWN_MASKS = 500  # without --deep
MAX_EXAMPLES = 10  # of the faults of one kind
EMBEDDING_WIDTH = 300
# Measured on 22 COCO images with 42 refs, built on one core at --img-size 480.
TRAIN_IMAGE_BYTES = 340_000
IMAGE_BYTES = 160_000  # of the original files, which evaluation splits keep
FILE_BYTES = 4_096  # each mask, and each expression: one block of the file system
SECONDS_PER_REF = 0.02


def is_there(dataset: Dataset, root: Path) -> bool:
    """Whether anything of the data set is there: COCO's images may be of others, and so may a folder of annotations."""
    if dataset.family == "referit":
        files = [dataset.refs_path(root, split) for split in dataset.splits]
        return any(path.exists() for path in (*files, root / REFERIT / "images", root / REFERIT / "mask"))
    refs = dataset.refs_path(root, "")
    others = {other.refs_path(root, "") for other in DATASETS.values()} - {refs}
    there = set(refs.parent.glob("[!.]*"))
    return refs in there or bool(there and not others & there)


class Report:
    """Prints what is found, as it is found, and counts the lines and, of these, the kinds of faults."""

    def __init__(self):
        self.lines = self.faults = 0

    def __call__(self, kind: str, text: str, examples: list | None = None) -> None:
        """Print a line: `ok`, `note` for what may stay as it is, or `FAULT` for what has to be fixed.

        `examples`, of which the first are shown, are what the line is about: of an empty list nothing is printed.
        """
        if examples == []:
            return
        self.lines += 1
        self.faults += kind == "FAULT"
        print(f"  {kind:5}  {one_line(text)}", flush=True)
        for example in (examples or [])[:MAX_EXAMPLES]:
            print(f"           {one_line(example)}")
        if len(examples or []) > MAX_EXAMPLES:
            print(f"           and {len(examples) - MAX_EXAMPLES:,} more")

    def attempt(self, action: Callable):
        """What `action` returns; None after a fault, if it raises InputError."""
        try:
            return action()
        except InputError as error:
            return self("FAULT", str(error))


def main() -> int:
    names = f"data sets: {NAMES} (default: those that are there), or a name for your own data"
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", nargs="+", metavar="NAME", help=names)
    where = "folder that holds data/ and external/ (default: the repository)"
    parser.add_argument("--root", type=Path, metavar="DIR", default=Path(__file__).resolve().parents[1], help=where)
    parser.add_argument("--deep", action="store_true", help="check of every image and mask, which takes minutes")
    shared = (
        "only the matrix of images of one split that are training images of another data set, from annotations alone"
    )
    parser.add_argument("--overlap", action="store_true", help=shared)
    add_own_data(parser.add_argument_group("your own data"))
    options = parser.parse_args()
    if not options.root.is_dir():
        raise InputError(f"--root {options.root}: no such folder")
    report = Report()
    if options.overlap and options.refs:
        raise InputError("--overlap compares public data sets: leave --refs out")
    (check_own if options.refs else check_public)(options, report)
    if report.faults:
        print(f"{report.faults} kinds of faults: see FAULT above")
    elif report.lines:
        print("all is right" if options.deep else "all is right (images were not opened: --deep does)")
    return int(report.faults > 0)


def check_public(options, report: Report) -> None:
    """Check the data sets that -d names, or those that are there. Raises InputError for flags of own data."""
    names, root = dict.fromkeys(map(short_name, options.dataset or DATASETS)), options.root
    for name in names:
        own_data(name, None, options.instances, options.images)
    datasets = [DATASETS[name] for name in names]
    found = [dataset for dataset in datasets if options.dataset or is_there(dataset, root)]
    if options.overlap:
        show_overlap(found, root, report)
        return
    absent: set[Path] = set()
    for dataset in datasets:
        print(f"{dataset.name:9} {dataset.title:18} {f'below {root}' if dataset in found else '-'}")
        if dataset in found:
            absent |= check_dataset(dataset, root, options.deep, report)
    for name, dataset in {dataset.vocabulary: dataset for dataset in found}.items():
        print(f"vocabulary {name}")
        check_words(dataset, root, report)
    if others := [dataset.name for dataset in datasets if dataset not in found]:
        advice = f"; python tools/check_data.py -d {others[0]} says where to get it" if found else ""
        print(f"-: nothing of it is below {root}{advice}")
    show_links(found or datasets, root, absent)


def show_links(datasets: list[Dataset], root: Path, absent: set[Path]) -> None:
    """Print where to get what the data sets lack; `absent` are files that folders lack."""
    incomplete = {folder for file in absent for folder in file.parents}
    needs = {need.what: need for dataset in datasets for need in needs_of(dataset)}.values()
    lacking = [
        need
        for need in needs
        if not all((root / path).exists() and root / path not in incomplete for path in need.paths)
    ]
    if lacking:
        print("where to get what is missing, as people reported on public trackers up to 2026 (nothing was verified):")
    for need in lacking:
        print(f"  {need.what}", *need.places, sep="\n    ")


def check_dataset(dataset: Dataset, root: Path, deep: bool, report: Report) -> set[Path]:
    """Check the annotations and images of a data set. Returns the images and masks that are missing or empty."""
    absent: set[Path] = set()
    splits = read_splits(dataset, root, report)
    if refs := [ref for group in splits.values() for ref in group]:
        absent = check_images(refs, deep, report)
    else:  # no ref tells which images are needed
        for folder in (REFERIT / "images", REFERIT / "mask") if dataset.family == "referit" else (COCO_IMAGES,):
            if not (root / folder).is_dir():
                report("FAULT", f"{root / folder}: no such folder; {IMAGES_REMEDY}")
    estimate(dataset, splits, root)
    return absent


def check_own(options, report: Report) -> None:
    """Check all splits of the user's own data."""
    if not options.dataset or len(options.dataset) > 1:
        raise InputError("--refs goes with one name after -d")
    own = own_data(options.dataset[0], options.refs, options.instances, options.images)
    own.require_flags()
    print(f"{own.name}, {own.refs}")
    refs, faults = report.attempt(own.check) or ([], [])
    for split in dict.fromkeys(ref.split for ref in refs):
        group = [ref for ref in refs if ref.split == split]
        report("ok", f"{split}: {count(group)}")
        check_expressions(split, group, report)
    report("FAULT", f"{len(faults):,} faults in {own.refs}:", faults)
    if refs:
        check_images(refs, options.deep, report)
    path = own.vocabulary_path(options.root)
    if path.exists():
        report("ok", f"{path} is there")
    else:
        report("note", f"{path}: no such file yet; make it: python build_vocab.py -d {own.name} --refs {own.refs}")


def read_splits(dataset: Dataset, root: Path, report: Report) -> Splits:
    """The usable refs of each split whose files can be read, after a report on the others and on the counts."""
    splits: Splits = {}
    if dataset.family == "referit":
        for split in dataset.splits:
            refs = report.attempt(lambda split=split: read_referit(root, split))
            splits |= {} if refs is None else {split: refs}
    elif found := report.attempt(lambda: coco_files(dataset, root).check(dataset.splits)):
        refs, broken = found
        splits = {split: [ref for ref in refs if ref.split == split] for split in dataset.splits}
        report("FAULT", f"{len(broken):,} refs cannot be used:", broken)
    for split, refs in splits.items():
        if dataset.splits[split]:
            check_counts(split, count(refs), dataset.splits[split], report)
        else:
            compared = "no published numbers are known to compare with"
            report("ok" if refs else "FAULT", f"{split}: {count(refs)}; {compared}")
        check_expressions(split, refs, report)
        report.attempt(lambda refs=refs: require_distinct_names(refs))
    return splits


def count(refs: list[Ref]) -> Counts:
    """How many there are."""
    return Counts(len(refs), sum(len(ref.sentences) for ref in refs), len({ref.image_path for ref in refs}))


def check_expressions(split: str, refs: list[Ref], report: Report) -> None:
    """Refs with empty expressions, or none at all; those of no object; polygons that are not drawn."""
    without = [ref for ref in refs if ref.no_target]
    if without:
        report("ok", f"{split}: {len(without):,} refs are declared to have no object")
    blank = [f"ref {ref.ref_id}" for ref in refs if not all(sentence.strip() for sentence in ref.sentences)]
    report("FAULT", f"{split}: {len(blank):,} refs have an empty expression (or build with --skip_empty):", blank)
    silent = [f"ref {ref.ref_id}" for ref in refs if not ref.sentences]
    report("note", f"{split}: {len(silent):,} refs have no expression, and are left out:", silent)
    flat = [f"ref {ref.ref_id}" for ref in refs if ref.left_out]
    number = sum(ref.left_out for ref in refs)
    report("note", f"{split}: {number:,} polygons have fewer than three points, and are not drawn:", flat)


def check_counts(split: str, found: Counts, published: Counts, report: Report) -> None:
    """Compare a split's numbers with the published ones; the literature's may be of another version of the files."""
    text, far = f"{split}: {found}", False
    pairs = {what: (getattr(found, what), getattr(published, what)) for what in ("refs", "expressions", "images")}
    off = {what: pair for what, pair in pairs.items() if pair[1] not in (None, pair[0])}
    if off:
        source = "counted in the public files" if published.counted else "in the literature"
        text += f"; {source}: " + ", ".join(f"{expected:,} {what}" for what, (_, expected) in off.items())
        tolerance = 0.0 if published.counted else 0.01
        far = any(abs(number - expected) > expected * tolerance for number, expected in off.values())
    report("FAULT" if far else "note" if off else "ok", text)


def check_images(refs: list[Ref], deep: bool, report: Report) -> set[Path]:
    """Check that images and mask files are there, which share of them masks cover and, with `deep`, that they fit.

    Returns those that are missing or empty.
    """
    by_image: dict[Path, list[Ref]] = {}
    for ref in refs:
        by_image.setdefault(ref.image_path, []).append(ref)
    masks = [file for file in map(mask_file, refs) if file]
    absent = {*check_files("images", list(by_image), report), *(check_files("masks", masks, report) if masks else ())}
    if deep:
        whole = {image: refs for image, refs in by_image.items() if not absent & {image, *map(mask_file, refs)}}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(look, whole, whole.values())
            faults = list(dict.fromkeys(fault for faults in found for fault in faults))
        report("FAULT", f"{len(faults):,} images or masks cannot be used:", faults)
        if not faults:
            report("ok", f"{len(whole):,} images opened, all their masks drawn")
    check_shares([ref for ref in refs if mask_file(ref) not in absent], deep, report)
    return absent


def mask_file(ref: Ref) -> Path | None:
    """Where the mask is; None if the annotations hold it."""
    return ref.segmentation if isinstance(ref.segmentation, Path) else None


def check_shares(refs: list[Ref], deep: bool, report: Report) -> None:
    """Print which share of the image masks cover, of some refs, with `deep` of all; name empty and full ones."""
    refs = [ref for ref in refs if not ref.no_target]
    step = 1 if deep else max(1, len(refs) // DRAWN_MASKS)
    drawn: list[tuple[Ref, float]] = []
    for ref in refs[::step]:
        with suppress(InputError):  # --deep names these
            drawn.append((ref, float(ref.mask().mean())))
    if not drawn:
        return
    least, middle, most = (100 * of(share for _, share in drawn) for of in (min, median, max))
    shown = f"least {least:.2f}%, median {middle:.2f}%, most {most:.2f}%"
    report("ok", f"{len(drawn):,} of {len(refs):,} masks cover of their image: {shown}")
    for odd, what in ((0, "nothing"), (1, "the whole image")):
        found = [f"ref {ref.ref_id} ({ref.split}), {ref.image_path}" for ref, share in drawn if share == odd]
        report("note", f"{len(found):,} of these masks cover {what}:", found)


def check_files(what: str, paths: list[Path], report: Report) -> list[Path]:
    """Those of `paths` that are missing or empty, all of them if there is no such folder."""
    try:
        missing = missing_files(paths, IMAGES_REMEDY)
    except InputError as error:
        report("FAULT", f"{error} ({len(set(paths)):,} {what})")
        return paths
    absent = set(missing)
    empty = [path for path in dict.fromkeys(paths) if path not in absent and not path.stat().st_size]
    report("FAULT", f"{len(missing):,} {what} are missing; {IMAGES_REMEDY}:", missing)
    report("FAULT", f"{len(empty):,} {what} are empty files; {IMAGES_REMEDY}:", empty)
    if not missing and not empty:
        report("ok", f"{len(set(paths)):,} {what} are there")
    return missing + empty


def look(path: Path, refs: list[Ref]) -> list[str]:
    """Faults of an image and its refs' masks."""
    faults: list[str] = []
    with noting(faults):
        height, width = read_image(path, remedy=IMAGES_REMEDY).shape[:2]
    for ref in refs if not faults else ():
        with noting(faults):
            shape = ref.size or ref.mask().shape
            if shape != (height, width):
                said = f"{shape[0]} x {shape[1]}, the image {height} x {width} (height x width)"
                raise InputError(f"{path}: ref {ref.ref_id} is annotated at {said}")
            if not ref.no_target and not ref.mask().any():
                raise InputError(f"{path}: the mask of ref {ref.ref_id} is empty")
    return faults


def check_words(dataset: Dataset, root: Path, report: Report) -> None:
    """Whether the vocabulary and its embeddings are there and belong together."""
    path = dataset.vocabulary_path(root)
    if not path.exists():
        make_it = f"python build_vocab.py -d {dataset.name} --glove FILE"
        report("note", f"{path}: no such file yet; make it: {make_it}")
        return
    vocabulary = report.attempt(lambda: Vocabulary.load(path))
    if vocabulary is None:
        return
    found, published = f"{path}: {len(vocabulary):,} words", WORDS[dataset.vocabulary]
    if len(vocabulary) == published:
        report("ok", found)
    else:
        report("note", f"{found}; the published one, which published checkpoints need, has {published:,}")
    path = dataset.embeddings_path(root)
    try:
        read_embeddings(path, len(vocabulary), EMBEDDING_WIDTH)
        report("ok", f"{path}: {len(vocabulary)} x {EMBEDDING_WIDTH}")
    except InputError as error:
        report("note", f"{error} (training needs it, building does not)")


def estimate(dataset: Dataset, splits: Splits, root: Path) -> None:
    """Print disk and time that building all splits takes, by the refs that are there, else by the published counts.

    Nothing where neither are known.
    """
    size = refs = 0
    for split, published in dataset.splits.items():
        found = count(splits[split]) if splits.get(split) else published or Counts(0, 0)
        image_bytes = TRAIN_IMAGE_BYTES if is_train(split) else IMAGE_BYTES
        size += (found.images or found.refs // 2) * image_bytes + FILE_BYTES * (found.refs + found.expressions)
        refs += found.refs
    if not refs:
        return
    disk = f"{size / 1e9:,.1f} GB (free: {shutil.disk_usage(root).free / 1e9:,.1f} GB)"
    print(f"  build  about {disk} and {refs * SECONDS_PER_REF / 60:,.1f} minutes of one core at --img-size 480")
    sample = f"{TRAIN_IMAGE_BYTES // 1000} kB a training image and {SECONDS_PER_REF} s a ref"
    print(f"         (from {sample}, measured on a small sample)")


if __name__ == "__main__":
    run_main(main)
