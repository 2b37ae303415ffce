"""The public data sets (RefCOCO and its kin, ReferIt): where their files are, and their published numbers."""

import re
from dataclasses import dataclass
from pathlib import Path

COCO_IMAGES = Path("data/coco/images/train2014")
REFER_DATA = Path("external/refer/data")
REFERIT = Path("data/referit")
WORDS = {"Gref": 12_112, "referit": 8_803}  # of the published vocabularies


@dataclass(frozen=True)
class Counts:
    """The numbers of a split; published ones are `counted` in the public files or, some lacking, of the literature."""

    refs: int
    expressions: int
    images: int | None = None
    counted: bool = False

    def __str__(self) -> str:
        return f"{self.refs:,} refs, {self.expressions:,} expressions, {self.images:,} images"


@dataclass(frozen=True)
class Dataset:
    """A data set that `-d` can name: where its files are below the root, its splits and their published numbers."""

    name: str
    title: str  # the usual name, for people
    refs_file: str  # in external/refer/data; of referit in data/referit, with the split in braces
    splits: dict[str, Counts | None]  # the first is for training; None: no published numbers are known
    alias: str | None = None  # another name that `-d` takes
    archived: str = ""  # when the zip of its annotations was archived
    family: str = "mscoco"  # or "referit": the folder of data/ its prepared data goes to
    vocabulary: str = "Gref"  # the name in data/vocabulary_{name}.txt and data/{name}_emb.npy

    @property
    def train_split(self) -> str:
        return next(iter(self.splits))

    def refs_path(self, root: Path, split: str) -> Path:
        folder = REFERIT if self.family == "referit" else REFER_DATA
        return Path(root) / folder / self.refs_file.format(split=split)

    def vocabulary_path(self, root: Path) -> Path:
        return Path(root) / "data" / f"vocabulary_{self.vocabulary}.txt"

    def embeddings_path(self, root: Path) -> Path:
        return Path(root) / "data" / f"{self.vocabulary}_emb.npy"


_UNC = {
    "train": Counts(42_404, 120_624, 16_994),
    "val": Counts(3_811, 10_834, 1_500, counted=True),
    "testA": Counts(1_975, 5_657, 750, counted=True),
    "testB": Counts(1_810, 5_095, 750, counted=True),
}
_UNC_PLUS = {
    "train": Counts(42_278, 120_191),
    "val": Counts(3_805, 10_758),
    "testA": Counts(1_975, 5_726),
    "testB": Counts(1_798, 4_889),
}
_GOOGLE = {"train": Counts(44_822, 85_474), "val": Counts(5_000, 9_536)}
_UMD = {"train": Counts(42_226, 80_512), "val": Counts(2_573, 4_896), "test": Counts(5_023, 9_602)}
_REFERIT = {
    "trainval": Counts(49_515, 59_976, 9_995, counted=True),
    "test": Counts(49_730, 60_105, 9_994, counted=True),
}
_GREFCOCO = dict.fromkeys(("train", "val", "testA", "testB"))
_ROWS = (
    Dataset("unc", "RefCOCO", "refcoco/refs(unc).p", _UNC, "refcoco", "20220413011718"),
    Dataset("unc+", "RefCOCO+", "refcoco+/refs(unc).p", _UNC_PLUS, "refcoco+", "20220413011656"),
    Dataset("Gref", "RefCOCOg (google)", "refcocog/refs(google).p", _GOOGLE, "refcocog", "20220413012904"),
    Dataset("Gref_umd", "RefCOCOg (umd)", "refcocog/refs(umd).p", _UMD, "refcocog_umd", "20220413012904"),
    Dataset("grefcoco", "gRefCOCO", "grefcoco/grefs(unc).json", _GREFCOCO),
    Dataset("referit", "ReferItGame", "referit_query_{split}.json", _REFERIT, family="referit", vocabulary="referit"),
)
DATASETS = {dataset.name: dataset for dataset in _ROWS}
ALIASES = {dataset.alias: dataset.name for dataset in _ROWS if dataset.alias}
NAMES = ", ".join(f"{dataset.name} (or {dataset.alias})" if dataset.alias else dataset.name for dataset in _ROWS)


def short_name(name: str) -> str:
    """The name in DATASETS that `name` stands for: "unc" for "refcoco"; itself if it is not an alias."""
    return ALIASES.get(name, name)


def is_public(name: str, split: str, expressions: int) -> bool:
    """Whether a split has the published number of expressions; True for data sets and splits that are not public."""
    public = DATASETS[name].splits.get(split) if name in DATASETS else None
    return public is None or public.expressions == expressions


def title(name: str) -> str:
    """The usual name of a data set: "RefCOCO" for "unc"; the user's own keep theirs."""
    return DATASETS[name].title if name in DATASETS else name


def photograph(dataset: str, image_name: str) -> tuple[str, str | int]:
    """What two data sets call the same photograph: COCO's id, or the name of an image that is not known to be COCO's.

    Of the public data sets on COCO the id is what `image_name` ends with; elsewhere the name has to be COCO's own, of
    2014 or, 12 digits alone, of 2017.
    """
    family = DATASETS[dataset].family if dataset in DATASETS else "custom"
    ending = r"(\d+)$" if family == "mscoco" else r"(?:^|__|COCO_(?:train|val)2014_)(0{6}\d{6})$"
    number = re.search(ending, image_name)
    return ("coco", int(number[1])) if number else (family, image_name)
