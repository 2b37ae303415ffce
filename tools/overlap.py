"""`check_data.py --overlap`: which images of a split are training images of another data set."""

from pathlib import Path

from prepare.public import coco_files, read_referit
from utils.datasets import Dataset, photograph
from utils.prepared import is_train

Photographs = dict[tuple[str, str], set]  # (data set, split) -> what `photograph` calls its images


def show_overlap(datasets: list[Dataset], root: Path, report) -> None:
    """Print the matrix: rows are splits, columns the data sets that one may train on. Only annotations are read.

    `report` is a `tools.check_data.Report`.
    """
    found: Photographs = {}
    for dataset in datasets:
        found |= report.attempt(lambda dataset=dataset: _photographs(dataset, root, report)) or {}
    columns = {f"{name} {split}": images for (name, split), images in found.items() if is_train(split)}
    rows = {f"{name} {split}": images for (name, split), images in found.items()}
    if not columns:
        return
    print("images of each split, and how many of them are training images of")
    width, cell = max(map(len, rows)), max(7, *map(len, columns))
    print(" ".join([" " * width, f"{'images':>7}", *(f"{name:>{cell}}" for name in columns)]))
    for name, images in rows.items():
        shared = [f"{len(images & trained):{cell},}" for trained in columns.values()]
        print(" ".join([f"{name:{width}}", f"{len(images):7,}", *shared]))


def _photographs(dataset: Dataset, root: Path, report) -> Photographs:
    if dataset.family == "referit":
        names = {split: {ref.image_name for ref in read_referit(root, split)} for split in dataset.splits}
    else:
        ids, faults = coco_files(dataset, root).image_ids(dataset.splits)
        report("FAULT", f"{len(faults):,} refs cannot be used:", faults)
        names = {split: set(map(str, ids[split])) for split in dataset.splits if ids[split]}
    return {(dataset.name, split): {photograph(dataset.name, name) for name in own} for split, own in names.items()}
