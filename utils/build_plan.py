"""What a build has to do: refs grouped by image, expressions numbered, and digests of what the files follow from."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from utils.batch_folder import texts_digest
from utils.errors import InputError
from utils.refs import Ref


@dataclass(frozen=True)
class Job:
    """The unit of work: an image with its refs of the split, each with its numbered expressions."""

    refs: tuple[tuple[Ref, tuple[tuple[int, str], ...]], ...]

    @property
    def image(self) -> Path:
        return self.refs[0][0].image_path

    def expressions(self) -> int:
        return sum(len(sentences) for _, sentences in self.refs)


def plan(refs: list[Ref], source: Path, skip_empty: bool) -> list[Job]:
    """Refs grouped by image, in order of first appearance; expressions numbered in the order of the file `source`.

    Raises InputError for an empty expression unless `skip_empty`, and if nothing is left.
    """
    by_image: dict[Path, list] = {}
    number = 0
    for ref in refs:
        sentences = []
        for sentence in ref.sentences:
            if not sentence.strip():
                if skip_empty:
                    continue
                raise InputError(f"{source}: ref {ref.ref_id} has an empty expression; mend it or pass --skip_empty")
            sentences.append((number, sentence))
            number += 1
        if sentences:
            by_image.setdefault(ref.image_path, []).append((ref, tuple(sentences)))
    if not number:
        raise InputError(f"{source}: the split has no expressions")
    return [Job(tuple(group)) for group in by_image.values()]


def split_entry(jobs: list[Job]) -> dict:
    """What meta.json says of a split, but for `complete`."""
    texts = sorted((i, ref.image_name, text) for job in jobs for ref, pairs in job.refs for i, text in pairs)
    return {
        "refs": sum(len(job.refs) for job in jobs),
        "expressions": sum(job.expressions() for job in jobs),
        "images": len(jobs),
        "texts_sha256": texts_digest((image, text) for _, image, text in texts),
        **_source_digests(jobs),
    }


def _source_digests(jobs: list[Job]) -> dict[str, str]:
    """Of all that the split's files follow from; images and mask files, too many to read here, stand by their bytes."""
    annotations, files = hashlib.sha256(), hashlib.sha256()
    for job in jobs:
        paths = [job.image]
        for ref, sentences in job.refs:
            outline = ref.segmentation
            if isinstance(outline, Path):
                paths.append(outline)
                outline = outline.name
            facts = ref.ref_id, ref.image_name, ref.size, outline, sentences
            annotations.update(json.dumps(facts).encode() + b"\n")
        files.update(json.dumps([path.stat().st_size for path in paths]).encode() + b"\n")
    return {"annotations_sha256": annotations.hexdigest(), "files_sha256": files.hexdigest()}
