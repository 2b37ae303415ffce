"""Is the data right? Looks at everything that build_batches.py will read, and says what is missing or broken.

    python tools/check_data.py                # all data sets
    python tools/check_data.py -d unc Gref    # two of them
    python tools/check_data.py -d unc --deep  # also open every image and draw every mask: minutes
    python tools/check_data.py -d NAME --refs FILE.jsonl     # your own data, all splits

Counts refs, expressions and images per split and compares them with the published ones, estimates what the build takes,
and prints where each download is to be had. Exit code 0: all is right; 1: something is missing, broken or miscounted.
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, from wherever this is run

from prepare.own_data import add_own_data, own_data
from prepare.public import IMAGES_REMEDY, coco_files
from prepare.ref import Ref, missing_files, require_distinct_names
from prepare.referit import read_referit
from tools.data_facts import (
    COUNTS,
    EMBEDDING_WIDTH,
    FILE_BYTES,
    IMAGE_BYTES,
    SECONDS_PER_REF,
    TRAIN_IMAGE_BYTES,
    WORDS,
    Counts,
    downloads,
)
from tools.report import Report
from utils.cli import ArgumentParser, run_main
from utils.datasets import COCO_IMAGES, DATASETS, NAMES, REFERIT, Dataset, short_name
from utils.errors import InputError
from utils.files.images import read_image
from utils.prepared import is_train
from utils.text import Vocabulary
from utils.words import read_embeddings

Splits = dict[str, list[Ref]]
MASKS = 500  # that are drawn without --deep
SHARES = {"least": min, "median": median, "most": max}


def main() -> int:
    options = parse()
    if not options.root.is_dir():
        raise InputError(f"--root {options.root}: no such folder")
    report = Report()
    if options.refs:
        return check_own(options, report)
    names = list(dict.fromkeys(map(short_name, options.dataset or DATASETS)))
    for name in names:
        own_data(name, None, options.instances, options.images)  # refuses unknown names, and flags without --refs
    for name in names:
        print(f"{name}, below {options.root}")
        splits = read_splits(DATASETS[name], options.root, report)
        refs = [ref for group in splits.values() for ref in group]
        if refs:
            absent = check_images(refs, options.deep, report)
            there = [ref for ref in refs if not isinstance(ref.segmentation, Path) or ref.segmentation not in absent]
            check_shares(there, options.deep, report)
        else:
            check_folders(DATASETS[name], options.root, report)
        estimate(name, splits, options.root)
    for vocabulary in dict.fromkeys(DATASETS[name].vocabulary for name in names):
        print(f"vocabulary {vocabulary}")
        check_words(next(d for d in DATASETS.values() if d.vocabulary == vocabulary), options.root, report)
    print_downloads(names)
    return finish(options.deep, report)


def finish(deep: bool, report: Report) -> int:
    """Print the last line. Returns the exit code."""
    if report.faults:
        print(f"{report.faults} kinds of faults: see FAULT above")
        return 1
    print("all is right" if deep else "all is right (images were not opened: --deep does)")
    return 0


def check_own(options, report: Report) -> int:
    """Check all splits of the user's own data. Returns the exit code."""
    if not options.dataset or len(options.dataset) > 1:
        raise InputError("--refs goes with one name after -d")
    own = own_data(options.dataset[0], options.refs, options.instances, options.images)
    own.require_flags()
    print(f"{own.name}, {own.refs}")
    refs, faults = report.attempt(own.check) or ([], [])
    for split in dict.fromkeys(ref.split for ref in refs):
        group = [ref for ref in refs if ref.split == split]
        images = len({ref.image_path for ref in group})
        expressions = sum(len(ref.sentences) for ref in group)
        report.ok(f"{split}: {len(group):,} refs, {expressions:,} expressions, {images:,} images")
        check_expressions(split, group, report)
    if faults:
        report.fault(f"{len(faults):,} faults in {own.refs}:", faults)
    if refs:
        check_images(refs, options.deep, report)
        check_shares(refs, options.deep, report)
    path = own.vocabulary_path(options.root)
    if path.exists():
        report.ok(f"{path} is there")
    else:
        report.note(f"{path}: no such file yet; make it: python build_vocab.py -d {own.name} --refs {own.refs}")
    return finish(options.deep, report)


def parse():
    """The command line."""
    names = f"data sets: {NAMES} (default: all), or a name for your own data"
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", nargs="+", metavar="NAME", help=names)
    root = Path(__file__).resolve().parents[1]
    where = "folder that holds data/ and external/ (default: the repository)"
    parser.add_argument("--root", type=Path, metavar="DIR", default=root, help=where)
    parser.add_argument("--deep", action="store_true", help="also open every image and draw every mask: minutes")
    add_own_data(parser.add_argument_group("your own data"))
    return parser.parse_args()


def read_splits(dataset: Dataset, root: Path, report: Report) -> Splits:
    """The usable refs of each split whose files can be read, after a report on the others and on the counts."""
    read = _referit_splits if dataset.name == "referit" else _coco_splits
    splits = read(dataset, root, report)
    for split, refs in splits.items():
        expressions = [sentence for ref in refs for sentence in ref.sentences]
        images = len({ref.image_path for ref in refs})
        check_counts(split, Counts(len(refs), len(expressions), images), COUNTS[dataset.name][split], report)
        check_expressions(split, refs, report)
        report.attempt(lambda refs=refs: require_distinct_names(refs))
    return splits


def check_expressions(split: str, refs: list[Ref], report: Report) -> None:
    """Refs with empty expressions, or none at all; polygons that are not drawn."""
    blank = [f"ref {ref.ref_id}" for ref in refs if not all(sentence.strip() for sentence in ref.sentences)]
    if blank:
        report.fault(f"{split}: {len(blank):,} refs have an empty expression (or build with --skip_empty):", blank)
    nameless = [f"ref {ref.ref_id}" for ref in refs if not ref.sentences]
    if nameless:
        report.note(f"{split}: {len(nameless):,} refs have no expression, and are left out:", nameless)
    flat = [f"ref {ref.ref_id}" for ref in refs if ref.left_out]
    if flat:
        number = sum(ref.left_out for ref in refs)
        report.note(f"{split}: {number:,} polygons have fewer than three points, and are not drawn:", flat)


def _referit_splits(dataset: Dataset, root: Path, report: Report) -> Splits:
    splits = {split: report.attempt(lambda s=split: read_referit(root, s)) for split in dataset.splits}
    return {split: refs for split, refs in splits.items() if refs is not None}


def _coco_splits(dataset: Dataset, root: Path, report: Report) -> Splits:
    splits: Splits = {split: [] for split in dataset.splits}
    found = report.attempt(lambda: coco_files(dataset, root).check(dataset.splits))
    if found is None:
        return {}
    refs, broken = found
    for ref in refs:
        splits[ref.split].append(ref)
    if broken:
        report.fault(f"{len(broken):,} refs cannot be used:", broken)
    return splits


def check_counts(split: str, found: Counts, published: Counts, report: Report) -> None:
    """Compare a split's numbers with the published ones."""
    shown = f"{split}: {found.refs:,} refs, {found.expressions:,} expressions, {found.images:,} images"
    off = []
    for what in ("refs", "expressions", "images"):
        number, expected = getattr(found, what), getattr(published, what)
        if expected is not None and number != expected:
            off.append(f"{expected:,} {what}")
            if abs(number - expected) > expected * published.tolerance:
                off[-1] += "!"
    if not off:
        report.ok(shown)
        return
    source = "counted in the public files" if published.counted else "in the literature"
    text = f"{shown}; {source}: {', '.join(item.rstrip('!') for item in off)}"
    if any(item.endswith("!") for item in off):
        report.fault(text)
    else:
        report.note(text)


def check_folders(dataset: Dataset, root: Path, report: Report) -> None:
    """Where no ref tells which images are needed: whether there are any at all."""
    for folder in (REFERIT / "images", REFERIT / "mask") if dataset.name == "referit" else (COCO_IMAGES,):
        if not (root / folder).is_dir():
            report.fault(f"{root / folder}: no such folder; {IMAGES_REMEDY}")


def check_images(refs: list[Ref], deep: bool, report: Report) -> set[Path]:
    """Whether images and mask files are there, and with `deep` whether they are whole and of the same size.

    Returns those that are not there.
    """
    by_image: dict[Path, list[Ref]] = {}
    for ref in refs:
        by_image.setdefault(ref.image_path, []).append(ref)
    masks = [ref.segmentation for ref in refs if isinstance(ref.segmentation, Path)]
    absent = {*check_files("images", list(by_image), report), *(check_files("masks", masks, report) if masks else ())}
    if not deep:
        return absent
    whole = {
        image: group
        for image, group in by_image.items()
        if image not in absent
        and not any(ref.segmentation in absent for ref in group if isinstance(ref.segmentation, Path))
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(look, whole, whole.values())
        faults = list(dict.fromkeys(fault for faults in found for fault in faults))
    if faults:
        report.fault(f"{len(faults):,} images or masks cannot be used:", faults)
    else:
        report.ok(f"{len(whole):,} images opened, all their masks drawn")
    return absent


def check_shares(refs: list[Ref], deep: bool, report: Report) -> None:
    """Print which share of the image masks cover, of some refs, with `deep` of all; name the odd ones."""
    step = 1 if deep else max(1, len(refs) // MASKS)
    drawn = [(ref, share) for ref in refs[::step] if (share := _share(ref)) is not None]
    if not drawn:
        return
    shares = [share for _, share in drawn]
    shown = ", ".join(f"{what} {100 * of(shares):.2f}%" for what, of in SHARES.items())
    report.ok(f"{len(drawn):,} of {len(refs):,} masks cover of their image: {shown}")
    for odd, what in ((0, "nothing"), (1, "the whole image")):
        found = [f"ref {ref.ref_id} ({ref.split}), {ref.image_path}" for ref, share in drawn if share == odd]
        if found:
            report.note(f"{len(found):,} of these masks cover {what}:", found)


def _share(ref: Ref) -> float | None:
    try:
        return float(ref.mask().mean())
    except InputError:  # --deep says so
        return None


def check_files(what: str, paths: list[Path], report: Report) -> list[Path]:
    """Those of `paths` that are missing or empty, all of them if there is no such folder."""
    try:
        missing = missing_files(paths, IMAGES_REMEDY)
    except InputError as error:
        report.fault(f"{error} ({len(set(paths)):,} {what})")
        return paths
    absent = set(missing)
    empty = [path for path in dict.fromkeys(paths) if path not in absent and not path.stat().st_size]
    if missing:
        report.fault(f"{len(missing):,} {what} are missing; {IMAGES_REMEDY}:", missing)
    if empty:
        report.fault(f"{len(empty):,} {what} are empty files; {IMAGES_REMEDY}:", empty)
    if not missing and not empty:
        report.ok(f"{len(set(paths)):,} {what} are there")
    return missing + empty


def look(path: Path, refs: list[Ref]) -> list[str]:
    """Faults of an image and its refs' masks."""
    try:
        size = read_image(path, remedy=IMAGES_REMEDY).shape[:2]
    except InputError as error:
        return [str(error)]
    faults = []
    for ref in refs:
        try:
            shape = ref.size or ref.mask().shape
            if shape != size:
                said = f"{shape[0]} x {shape[1]}, the image {size[0]} x {size[1]} (height x width)"
                faults.append(f"{path}: ref {ref.ref_id} is annotated at {said}")
            elif not ref.mask().any():
                faults.append(f"{path}: the mask of ref {ref.ref_id} is empty")
        except InputError as error:
            faults.append(str(error))
    return faults


def check_words(dataset: Dataset, root: Path, report: Report) -> None:
    """Whether the vocabulary and its embeddings are there and belong together."""
    path = dataset.vocabulary_path(root)
    vocabulary = report.attempt(lambda: Vocabulary.load(path))
    if vocabulary is None:
        return
    size = f"{path}: {len(vocabulary):,} words"
    if len(vocabulary) == WORDS[dataset.vocabulary]:
        report.ok(size)
    else:
        report.note(f"{size}; the published one, which published checkpoints need, has {WORDS[dataset.vocabulary]:,}")
    path = dataset.embeddings_path(root)
    try:
        read_embeddings(path, len(vocabulary), EMBEDDING_WIDTH)
        report.ok(f"{path}: {len(vocabulary)} x {EMBEDDING_WIDTH}")
    except InputError as error:
        report.note(f"{error} (training needs it, building does not)")


def estimate(name: str, splits: Splits, root: Path) -> None:
    """Print disk and time that building all splits takes, by the refs that are there, else by the published counts."""
    size = refs = 0
    for split, published in COUNTS[name].items():
        group = splits.get(split)
        n_refs = len(group) if group else published.refs
        texts = sum(len(ref.sentences) for ref in group) if group else published.expressions
        images = len({ref.image_path for ref in group}) if group else published.images or published.refs // 2
        size += images * (TRAIN_IMAGE_BYTES if is_train(split) else IMAGE_BYTES) + FILE_BYTES * (n_refs + texts)
        refs += n_refs
    free = shutil.disk_usage(root if root.is_dir() else Path.cwd()).free
    print(
        f"  build  about {size / 1e9:,.1f} GB (free: {free / 1e9:,.1f} GB) and {refs * SECONDS_PER_REF / 60:,.1f} "
        f"minutes of one core at --img-size 480\n         (from {TRAIN_IMAGE_BYTES // 1000} kB a training image and "
        f"{SECONDS_PER_REF} s a ref, measured on a small sample)"
    )


def print_downloads(names: list[str]) -> None:
    """Where everything is to be had."""
    print("where to get it, as people reported on public trackers; no link was verified:")
    places = {what: links for name in names for what, links in downloads(name).items()}
    for what, links in places.items():
        print(f"  {what}")
        for link in links:
            print(f"    {link}")


if __name__ == "__main__":
    run_main(main)
