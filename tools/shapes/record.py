"""`data/shapes.json` under the root: which shapes are there. It keeps them from being mixed with other data."""

from dataclasses import asdict
from pathlib import Path

from tools.shapes.dataset import COCO_IMAGES, REFER, REFERIT, REFS_FILES, Plan, image_paths, mask_path
from utils.errors import InputError
from utils.files.reading import read_json
from utils.files.writing import write_json

RECORD = Path("data/shapes.json")
VERSION = 1  # a new number wherever the same arguments give other bytes


def claim(plan: Plan, root: Path, overwrite: bool) -> bool:
    """Make `root` ready for the shapes of `plan`; False if they are complete there already.

    An unfinished set of the same plan is begun anew. Raises InputError if the root holds real data, or, without
    `overwrite`, other shapes; with it, their images and masks are removed.
    """
    wanted = {"format": "restr-shapes", "version": VERSION, "arguments": asdict(plan)}
    if not (root / RECORD).exists():
        _refuse_real_data(root)
    else:
        there = read_json(root / RECORD, "the record of make_shapes")
        if there == {**wanted, "complete": True}:
            return False
        if there != {**wanted, "complete": False}:
            if not overwrite:
                raise InputError(
                    f"{root} holds other shapes ({_say(there)}; see {RECORD}): pass --overwrite or another --root"
                )
            _remove(root, there)
    (root / RECORD).parent.mkdir(parents=True, exist_ok=True)
    write_json(root / RECORD, {**wanted, "complete": False})
    return True


def finish(plan: Plan, root: Path) -> None:
    """Note that every file of the plan is written."""
    write_json(
        root / RECORD,
        {"format": "restr-shapes", "version": VERSION, "arguments": asdict(plan), "complete": True},
    )


def _refuse_real_data(root: Path) -> None:
    """COCO and RefCOCO have the same file names as the shapes, so nothing there may be touched."""
    for folder in (COCO_IMAGES, REFERIT, *(REFER / name for name in REFS_FILES)):
        found = next((path for path in (root / folder).rglob("*") if path.is_file()), None)
        if found is not None:
            raise InputError(f"{found} is not make_shapes' ({root / RECORD} is missing): give another --root")


def _say(record: object) -> str:
    arguments = record.get("arguments") if isinstance(record, dict) else None
    if not isinstance(arguments, dict):
        return "of an unknown kind"
    return ", ".join(f"{name} {value}" for name, value in arguments.items())


def _remove(root: Path, record: object) -> None:
    """Remove the images and masks of the recorded set; the annotation files are written over."""
    try:
        count = sum(int(number) for number in record["arguments"]["images"].values())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{root / RECORD}: not a record of make_shapes; give another --root") from None
    for index in range(count):
        for path in image_paths(index):
            (root / path).unlink(missing_ok=True)
        for mask in (root / REFERIT / "mask").glob(f"{mask_path(index, 0).stem.rpartition('_')[0]}_*.mat"):
            mask.unlink()
