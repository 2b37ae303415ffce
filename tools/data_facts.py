"""What is known of the public data sets: how large they are, where to get them, and what their batches cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """A split as SPEC section 1 has it; None where it gives no number."""

    refs: int
    expressions: int
    images: int | None = None
    counted: bool = False  # in the public files; otherwise as the literature gives it

    @property
    def tolerance(self) -> float:
        """Share by which a right file may differ: the literature's numbers may be of another version of the files."""
        return 0.0 if self.counted else 0.01


COUNTS = {
    "unc": {
        "train": Counts(42_404, 120_624, 16_994),
        "val": Counts(3_811, 10_834, 1_500, counted=True),
        "testA": Counts(1_975, 5_657, 750, counted=True),
        "testB": Counts(1_810, 5_095, 750, counted=True),
    },
    "unc+": {
        "train": Counts(42_278, 120_191),
        "val": Counts(3_805, 10_758),
        "testA": Counts(1_975, 5_726),
        "testB": Counts(1_798, 4_889),
    },
    "Gref": {"train": Counts(44_822, 85_474), "val": Counts(5_000, 9_536)},
    "Gref_umd": {"train": Counts(42_226, 80_512), "val": Counts(2_573, 4_896), "test": Counts(5_023, 9_602)},
    "referit": {
        "trainval": Counts(49_515, 59_976, 9_995, counted=True),
        "test": Counts(49_730, 60_105, 9_994, counted=True),
    },
}

WORDS = {"Gref": 12_112, "referit": 8_803}  # of the published vocabularies
EMBEDDING_WIDTH = 300

# Measured on 22 COCO images with 42 refs, built on one core at --img-size 480 in the compact form.
TRAIN_IMAGE_BYTES = 340_000
IMAGE_BYTES = 160_000  # of the original files, which evaluation splits keep
FILE_BYTES = 4_096  # each mask, and each expression: one block of the file system
SECONDS_PER_REF = 0.02

_ARCHIVE = "https://web.archive.org/web"
_REFER = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_COCO_DOWNLOADS = {
    "images (13 GB), to data/coco/images/train2014/": ("http://images.cocodataset.org/zips/train2014.zip",),
}
_STAMPS = {"refcoco": "20220413011718", "refcoco+": "20220413011656", "refcocog": "20220413012904"}
_REFER_SETS = {"unc": "refcoco", "unc+": "refcoco+", "Gref": "refcocog", "Gref_umd": "refcocog"}
_PHRASECUT = "https://github.com/chenxi116/TF-phrasecut-public (folder data/)"
_SHARED = {
    "vocabularies, to data/vocabulary_{Gref,referit}.txt": (_PHRASECUT, "or make your own with build_vocab.py"),
    "word vectors (glove.6B.300d.txt), for build_vocab.py --glove": (
        "https://nlp.stanford.edu/projects/glove/ (glove.6B.zip)",
    ),
}
_REFERIT_DOWNLOADS = {
    "images and masks, to data/referit/{images,mask}/": (
        "https://drive.google.com/drive/folders/12EEft_mg-47EwWegawyH0pHaX7781E3_",
        "gone: the Berkeley tarball of older instructions",
    ),
    "referit_query_{trainval,test}.json, to data/referit/": (_PHRASECUT,),
}


def downloads(dataset: str) -> dict[str, tuple[str, ...]]:
    """What a data set needs -> where people report it is to be had, best first (SPEC section 13)."""
    if dataset == "referit":
        return _REFERIT_DOWNLOADS | _SHARED
    name = _REFER_SETS[dataset]
    annotations = (
        f"{_ARCHIVE}/{_STAMPS[name]}/{_REFER}/{name}.zip (reported working in December 2025)",
        f"gone since 2022: {_REFER}/{name}.zip",
    )
    return {f"annotations, to external/refer/data/{name}/": annotations} | _COCO_DOWNLOADS | _SHARED
