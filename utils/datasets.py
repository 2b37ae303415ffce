"""The public data sets -- RefCOCO, RefCOCO+, RefCOCOg, ReferIt -- and the reading of their annotations."""

from dataclasses import dataclass
from pathlib import Path

COCO_IMAGES = Path("data/coco/images/train2014")
REFER_DATA = Path("external/refer/data")
REFERIT = Path("data/referit")


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
