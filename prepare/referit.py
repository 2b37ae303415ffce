"""ReferItGame: query files and .mat masks."""

from collections.abc import Iterator
from pathlib import Path

from prepare.ref import Ref, checked_sentences
from utils.datasets import DATASETS, REFERIT
from utils.errors import InputError
from utils.files.reading import read_json, safe_name

_QUERIES_REMEDY = "get ReferIt's files as data/README.md says"


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
