"""Where people report that the data is: the list behind tools/check_data.py, data/README.md and external/README.md.

Collected from public issue trackers up to 2026. Nothing was verified from here. The two pages say the same in more
words; tests/tools/test_check_data.py compares them with this list.
"""

from pathlib import Path
from typing import NamedTuple

from utils.datasets import COCO_IMAGES, REFERIT, Dataset


class Need(NamedTuple):
    """What a data set needs, the paths below the root that it becomes, and where it is, the first choice first."""

    what: str
    paths: list[Path]
    places: list[str]


_REFER = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"  # gone since 2022
_HUB = "copies on huggingface.co:"
_AUTHORS = "https://github.com/SouthFlame/restr, {}: the authors' own, the first choice for a faithful run"
_COCO = [
    "http://images.cocodataset.org/zips/train2014.zip (13,510,573,713 bytes)",
    "SHA-256 ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    f"{_HUB} omlab/VLM-R1, BAAI/DataOptim, wusize/coco",
]
_ARCHIVE = "the archive was reported to work in December 2025; it refuses now and then: try again"
_GONE = "the original host, bvisionweb1.cs.unc.edu, has been down since 2022"
_SNAPSHOT = "Wojtekb30/ref_coco_lichengunc (the whole host, images too)"
_EVALUATION = "not for a reproduction: lmms-lab/* (no training splits)"
ANNOTATIONS = {  # by folder, beside the archived zip
    "refcoco": [f"{_HUB} wusize/coco (184 MB), {_SNAPSHOT}", _EVALUATION],
    "refcoco+": [f"{_HUB} wusize/coco (152 MB), {_SNAPSHOT}", _EVALUATION],
    "refcocog": [f"{_HUB} wusize/coco (192 MB), {_SNAPSHOT}", f"{_EVALUATION}, jxu124/refcocog (no google split)"],
    "grefcoco": ["https://github.com/henghuiding/gRefCOCO", f"{_HUB} KeepParallel/gRefCOCO"],
}
_REFERIT = [
    "https://drive.google.com/drive/folders/12EEft_mg-47EwWegawyH0pHaX7781E3_ (its author's)",
    "the Berkeley tarball of older instructions is gone (ronghanghu/text_objseg, issues 7 and 8)",
    f"{_HUB} nanom/refclef (images alone)",
]
_QUERIES = ["https://github.com/chenxi116/TF-phrasecut-public, folder data/"]
_GLOVE = [
    "https://nlp.stanford.edu/projects/glove/ (glove.6B.zip, 862 MB; in it glove.6B.300d.txt; outages were reported)",
    f"{_HUB} stanfordnlp/glove; https://zenodo.org/records/4925376",
]


def needs_of(dataset: Dataset) -> list[Need]:
    """What there is to download for a data set."""
    name, files = dataset.vocabulary, [dataset.refs_path(Path(), split) for split in dataset.splits]
    both = "table and vocabulary belong together: take both from there, or make both with build_vocab.py --glove"
    words = [
        Need(
            f"vocabulary, to data/vocabulary_{name}.txt",
            [dataset.vocabulary_path(Path())],
            [_AUTHORS.format(f"data/vocabulary_{name}.txt"), *_QUERIES, "or make your own with build_vocab.py"],
        ),
        Need(
            f"word vectors, to data/{name}_emb.npy, or for build_vocab.py --glove",
            [dataset.embeddings_path(Path())],
            [_AUTHORS.format(f"data/{name}_emb.npy"), both, *_GLOVE],
        ),
    ]
    if dataset.family == "referit":
        images = [REFERIT / "images", REFERIT / "mask"]
        queries = "referit_query_{trainval,test}.json, to data/referit/"
        return [
            Need("images and masks, to data/referit/{images,mask}/", images, _REFERIT),
            Need(queries, files, _QUERIES),
            *words,
        ]
    folder = files[0].parent
    places = ANNOTATIONS.get(folder.name, ["those who publish the data set"])
    if dataset.archived:
        zipped = f"https://web.archive.org/web/{dataset.archived}/{_REFER}/{folder.name}.zip"
        places = [zipped, _ARCHIVE, _GONE, *places]
    return [
        Need(f"annotations, to {folder}/", [files[0], folder / "instances.json"], places),
        Need("images (13 GB), to data/coco/images/train2014/", [COCO_IMAGES], _COCO),
        *words,
    ]
