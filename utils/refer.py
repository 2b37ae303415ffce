"""The public data sets -- RefCOCO, RefCOCO+, RefCOCOg, ReferIt -- and the reading of their annotations."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.coco import CocoFiles
from utils.errors import InputError, one_line
from utils.refs import Ref, checked_sentences, require_distinct_names, require_files
from utils.safe_io import read_json, safe_name

COCO_IMAGES = Path("data/coco/images/train2014")
REFER_DATA = Path("external/refer/data")
REFERIT = Path("data/referit")

_ANNOTATIONS_REMEDY = "get the annotations as external/README.md says"
_QUERIES_REMEDY = "get ReferIt's files as data/README.md says"
IMAGES_REMEDY = "get the images as data/README.md says"


@dataclass(frozen=True)
class Dataset:
    """A data set that `-d` can name: where its files are below the root, and its splits."""

    name: str
    family: str  # "mscoco" or "referit": the folder of data/ its batches go to
    refs_file: str  # referit: with the split in braces
    splits: tuple[str, ...]
    vocabulary: str  # the name in data/vocabulary_{name}.txt and data/{name}_emb.npy
    title: str  # the usual name, for people
    alias: str | None = None  # another name that `-d` takes

    @property
    def train_split(self) -> str:
        return self.splits[0]

    def refs_path(self, root: Path, split: str) -> Path:
        return Path(root) / self.refs_file.format(split=split)

    def coco_files(self, root: Path) -> CocoFiles:
        """The files of any of them but referit."""
        refs = self.refs_path(root, "")
        return CocoFiles(refs, refs.with_name("instances.json"), Path(root) / COCO_IMAGES, _ANNOTATIONS_REMEDY)

    def vocabulary_path(self, root: Path) -> Path:
        return Path(root) / "data" / f"vocabulary_{self.vocabulary}.txt"

    def embeddings_path(self, root: Path) -> Path:
        return Path(root) / "data" / f"{self.vocabulary}_emb.npy"


_COCO_SETS = (
    ("unc", "refcoco/refs(unc).p", ("train", "val", "testA", "testB"), "RefCOCO", "refcoco"),
    ("unc+", "refcoco+/refs(unc).p", ("train", "val", "testA", "testB"), "RefCOCO+", "refcoco+"),
    ("Gref", "refcocog/refs(google).p", ("train", "val"), "RefCOCOg (google)", "refcocog"),
    ("Gref_umd", "refcocog/refs(umd).p", ("train", "val", "test"), "RefCOCOg (umd)", "refcocog_umd"),
)
DATASETS = {
    name: Dataset(name, "mscoco", f"{REFER_DATA}/{file}", splits, "Gref", title, alias)
    for name, file, splits, title, alias in _COCO_SETS
}
DATASETS["referit"] = Dataset(
    "referit", "referit", f"{REFERIT}/referit_query_{{split}}.json", ("trainval", "test"), "referit", "ReferItGame"
)
ALIASES = {dataset.alias: name for name, dataset in DATASETS.items() if dataset.alias}
NAMES = "unc (or refcoco), unc+ (refcoco+), Gref (refcocog; the paper's google split), Gref_umd (refcocog_umd), referit"


def short_name(name: str) -> str:
    """The name in DATASETS that `name` stands for: "unc" for "refcoco"; itself if it is not an alias."""
    return ALIASES.get(name, name)


def title(name: str) -> str:
    """The usual name of a data set: "RefCOCO" for "unc"; the user's own keep theirs."""
    return DATASETS[name].title if name in DATASETS else name


def read_refs(root: Path | str, dataset: str, split: str) -> list[Ref]:
    """The refs of a split in the order of the file, every annotation checked and every image known to be there.

    Raises InputError, which names the file and the ref: an unknown data set or split, missing files, annotations or
    images, broken segmentations. SPEC sections 1 to 3.
    """
    root = Path(root)
    chosen = _dataset(dataset, split)
    refs = read_referit(root, split) if dataset == "referit" else chosen.coco_files(root).read_refs(split)
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
    return chosen.coco_files(Path(root)).read_expressions([split])


def _dataset(dataset: str, split: str) -> Dataset:
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {one_line(dataset, 40)!r}; known are {', '.join(DATASETS)}")
    if split not in DATASETS[dataset].splits:
        known = ", ".join(DATASETS[dataset].splits)
        raise InputError(f"{dataset} has no split {one_line(split, 40)!r}; it has {known}")
    return DATASETS[dataset]


def read_referit(root: Path, split: str) -> list[Ref]:
    """ReferIt's refs as the query file has them; whether images and masks are there is not looked at."""
    folder = root / REFERIT
    return [
        Ref(
            ref_id=ref_id,
            image_path=folder / "images" / f"{image_name}.jpg",
            image_name=image_name,
            size=None,
            sentences=sentences,
            split=split,
            segmentation=folder / "mask" / f"{ref_id}.mat",
        )
        for ref_id, image_name, sentences in _query_entries(DATASETS["referit"].refs_path(root, split))
    ]


def _query_entries(path: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(ref_id, image name, its expressions) of each entry, in file order."""
    queries = read_json(path, "query file", _QUERIES_REMEDY, allow_nan=True)
    if not isinstance(queries, dict) or not queries:
        raise InputError(f"{path}: is not a table of expressions by object; {_QUERIES_REMEDY}")
    for ref_id, sentences in queries.items():
        image_name, separator, _ = safe_name(ref_id, str(path)).partition("_")
        if not image_name or not separator or not isinstance(sentences, list):
            raise InputError(f'{path}: "{ref_id}" is not IMAGE_NUMBER with a list of expressions')
        yield ref_id, image_name, checked_sentences(sentences, f"{path}: {ref_id}", _QUERIES_REMEDY)
