"""The annotations of a public data set by its name: RefCOCO's layout, and ReferItGame's query files and .mat masks."""

from pathlib import Path

from prepare.ref import Ref, checked_sentences, missing_files, require_distinct_names
from prepare.refcoco import CocoFiles
from utils.datasets import COCO_IMAGES, DATASETS, REFERIT, Dataset
from utils.errors import InputError, one_line
from utils.files.reading import read_json, safe_name

_ANNOTATIONS_REMEDY = "get the annotations as external/README.md says"
_QUERIES_REMEDY = "get ReferIt's files as data/README.md says"
IMAGES_REMEDY = "get the images as data/README.md says"


def coco_files(dataset: Dataset, root: Path, skip_empty: bool = True) -> CocoFiles:
    """The files of any public data set but referit."""
    refs = dataset.refs_path(root, "")
    images = Path(root) / COCO_IMAGES
    return CocoFiles(refs, refs.with_name("instances.json"), images, _ANNOTATIONS_REMEDY, skip_empty)


def read_refs(root: Path | str, dataset: str, split: str, skip_empty: bool = True) -> list[Ref]:
    """The refs of a split in the order of the file, every annotation checked and every image known to be there.

    Raises InputError, which names the file and the ref: an unknown split, missing files, annotations or images, broken
    segmentations, and empty expressions unless `skip_empty`.
    """
    root, splits = Path(root), DATASETS[dataset].splits
    if split not in splits:
        raise InputError(f"{dataset} has no split {one_line(split, 40)!r}; it has {', '.join(splits)}")
    if dataset == "referit":
        refs = read_referit(root, split, skip_empty)
    else:
        refs, faults = coco_files(DATASETS[dataset], root, skip_empty).check([split])
        if faults:
            raise InputError(faults[0])
    require_distinct_names(refs)
    masks = (ref.segmentation for ref in refs if isinstance(ref.segmentation, Path))
    for what, paths in (("images", (ref.image_path for ref in refs)), ("masks", masks)):
        if missing := missing_files(paths, IMAGES_REMEDY):
            more = f" ({len(missing):,} {what} are missing)" if len(missing) > 1 else ""
            raise InputError(f"{missing[0]}: no such file{more}; {IMAGES_REMEDY}")
    return refs


def read_expressions(root: Path | str, dataset: str, split: str) -> list[str]:
    """All expressions of a split, from the refs or query file alone. Raises InputError as `read_refs` does."""
    if dataset == "referit":
        return [sentence for ref in read_referit(Path(root), split) for sentence in ref.sentences]
    expressions, faults = coco_files(DATASETS[dataset], Path(root)).check_expressions([split])
    if faults:
        raise InputError(faults[0])
    return expressions


def read_referit(root: Path, split: str, skip_empty: bool = True) -> list[Ref]:
    """ReferIt's refs in the order of the query file; whether images and masks are there is not looked at."""
    folder, path = root / REFERIT, DATASETS["referit"].refs_path(root, split)
    queries = read_json(path, "query file", _QUERIES_REMEDY, allow_nan=True)
    if not isinstance(queries, dict) or not queries:
        raise InputError(f"{path}: is not a table of expressions by object; {_QUERIES_REMEDY}")
    refs = []
    for ref_id, sentences in queries.items():
        image_name, separator, _ = safe_name(ref_id, str(path)).partition("_")
        if not image_name or not separator or not isinstance(sentences, list):
            raise InputError(f'{path}: "{ref_id}" is not IMAGE_NUMBER with a list of expressions')
        ref = Ref(
            ref_id=ref_id,
            image_path=folder / "images" / f"{image_name}.jpg",
            image_name=image_name,
            size=None,
            sentences=checked_sentences(sentences, f"{path}: ref {ref_id}", _QUERIES_REMEDY, skip_empty),
            split=split,
            segmentation=folder / "mask" / f"{ref_id}.mat",
        )
        refs.append(ref)
    return refs
