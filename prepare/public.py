"""The annotations of a public data set by its name."""

from pathlib import Path

from prepare.ref import Ref, require_distinct_names, require_files
from prepare.refcoco import CocoFiles
from prepare.referit import read_referit
from utils.datasets import COCO_IMAGES, DATASETS, Dataset
from utils.errors import InputError, one_line

_ANNOTATIONS_REMEDY = "get the annotations as external/README.md says"
IMAGES_REMEDY = "get the images as data/README.md says"


def coco_files(dataset: Dataset, root: Path) -> CocoFiles:
    """The files of any public data set but referit."""
    refs = dataset.refs_path(root, "")
    return CocoFiles(refs, refs.with_name("instances.json"), Path(root) / COCO_IMAGES, _ANNOTATIONS_REMEDY)


def read_refs(root: Path | str, dataset: str, split: str) -> list[Ref]:
    """The refs of a split in the order of the file, every annotation checked and every image known to be there.

    Raises InputError, which names the file and the ref: an unknown data set or split, missing files, annotations or
    images, broken segmentations.
    """
    root = Path(root)
    chosen = _dataset(dataset, split)
    refs = read_referit(root, split) if dataset == "referit" else coco_files(chosen, root).read_refs(split)
    require_distinct_names(refs)
    require_files((ref.image_path for ref in refs), "images", IMAGES_REMEDY)
    if dataset == "referit":
        require_files((ref.segmentation for ref in refs), "masks", IMAGES_REMEDY)
    return refs


def read_expressions(root: Path | str, dataset: str, split: str) -> list[str]:
    """All expressions of a split, from the refs or query file alone. Raises InputError as `read_refs` does."""
    chosen = _dataset(dataset, split)
    if dataset == "referit":
        return [sentence for ref in read_referit(Path(root), split) for sentence in ref.sentences]
    return coco_files(chosen, Path(root)).read_expressions([split])


def _dataset(dataset: str, split: str) -> Dataset:
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {one_line(dataset, 40)!r}; known are {', '.join(DATASETS)}")
    if split not in DATASETS[dataset].splits:
        known = ", ".join(DATASETS[dataset].splits)
        raise InputError(f"{dataset} has no split {one_line(split, 40)!r}; it has {known}")
    return DATASETS[dataset]
