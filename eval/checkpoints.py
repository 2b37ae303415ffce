"""Which checkpoints a command line means, and whether one fits the data it is to be evaluated on."""

import os
import re
from dataclasses import replace
from pathlib import Path

from models import load_restr
from models.config import LANGUAGE_BACKBONES, VISION_BACKBONES, TextEncoderConfig, VisionConfig
from models.restr import ReSTR
from utils.errors import InputError, one_line
from utils.prepared import PreparedSplit
from utils.text import Vocabulary

EVERY = 5000  # the steps that `--iters 0` means: the authors' --save_every
_STEP = re.compile(r"(?P<stem>.+)_(?P<step>\d+)\.pth")
_SHOWN = 12  # file names in an error


def find_checkpoints(folder: Path, steps: list[int] | None, dataset: str) -> list[Path]:
    """Files of the given steps in `folder`: DATASET_STEP.pth, or FOLDER_STEP.pth as the authors' evaluation has it.

    A single 0 means every 5000th step that is there; None the best one of a training (best.pth). Where there is no
    weights/restr, the authors' default for all data sets, weights/restr_DATASET is meant, which is ours.
    Raises InputError, which lists what there is, if one is missing.
    """
    existing = [path for path in (folder, folder.parent / f"{folder.name}_{dataset}") if path.is_dir()]
    if not existing:
        raise InputError(f"--restore_refseg {folder}: no such folder")
    folder = existing[0]
    stems = (dataset, Path(os.path.abspath(folder)).name, folder.resolve().name)  # noqa: PTH100
    wanted = f"checkpoint of a step that is a multiple of {EVERY}"
    if steps is None:
        found = [folder / "best.pth"]
    else:
        if steps == [0]:
            names = (_STEP.fullmatch(path.name) for path in folder.iterdir())
            steps = sorted({int(name["step"]) for name in names if name and name["stem"] in stems})
            steps = [step for step in steps if step and step % EVERY == 0]
        choices = [[folder / f"{stem}_{step}.pth" for stem in stems] for step in steps]
        found = [next((path for path in paths if path.is_file()), paths[0]) for paths in choices]
    missing = [path.name for path in found if not path.is_file()]
    if missing or not found:
        there = sorted(path.name for path in folder.glob("*.pth"))
        shown = ", ".join(there[:_SHOWN]) + (f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else "")
        raise InputError(
            f"{folder}: no {', '.join(missing) or wanted}; it holds {shown or 'no .pth file'}: "
            "give --iters N or --checkpoint FILE (training drops old numbered ones: see its --keep)"
        )
    return found


def step_of(model: ReSTR, path: Path) -> str:
    """What to call a checkpoint in titles and folder names: its step, or the file's name where it has none."""
    name = _STEP.fullmatch(path.name)
    return str(model.provenance["step"] or (name["step"] if name else path.stem))


def load_model(path: Path, device: str, flags: dict) -> ReSTR:
    """The model of a checkpoint, ours or of the authors' code, after a check against the model-shape flags given.

    `flags`: v_backbone, l_backbone, input_size (None: not given), is_shared and no_decoder (False: not given). A
    checkpoint of ours knows what it is; the authors' has the default size except for input_size and is_shared.
    Raises InputError for a flag that contradicts the checkpoint.
    """
    size = {"image_size": flags["input_size"]} if flags["input_size"] else {}
    model = load_restr(path, device, shared=flags["is_shared"], **size)
    config, own = model.config, model.config.language
    wrong = []
    name = flags["v_backbone"]
    if name and VISION_BACKBONES.get(name, VisionConfig(name)).backbone != config.vision.backbone:
        wrong.append(f"--v_backbone {name} (it has {config.vision.backbone})")
    name = flags["l_backbone"]
    if isinstance(own, TextEncoderConfig):
        if name and Path(name).name != Path(own.name).name:
            wrong.append(f"--l_backbone {name} (it has {one_line(own.name, 80)})")
    elif name and name not in LANGUAGE_BACKBONES:
        raise InputError(f"--l_backbone {name}: choose from {', '.join(LANGUAGE_BACKBONES)}")
    elif name and replace(LANGUAGE_BACKBONES[name], vocabulary_size=own.vocabulary_size) != own:
        wrong.append(f"--l_backbone {name} (it has {own.depth} blocks of width {own.width})")
    if flags["is_shared"] and not config.fusion.shared:
        wrong.append("--is_shared (its fusion encoders do not share weights)")
    if flags["no_decoder"] and config.decoder.enabled:
        wrong.append("--no_decoder (it has a decoder)")
    if size and size["image_size"] != config.vision.image_size:
        wrong.append(f"--input_size {_shown(size['image_size'])} (it takes {_shown(config.vision.image_size)})")
    if wrong:
        raise InputError(f"{path} contradicts {', '.join(wrong)}: leave the flag out, the checkpoint says what it is")
    return model


def check_fit(model: ReSTR, path: Path, split: PreparedSplit, other_dataset: bool) -> None:
    """Raise InputError unless image size, vocabulary and data set of the checkpoint are those of the prepared data.

    `other_dataset` allows another data set, never another vocabulary. A folder made by the authors' code (without
    meta.json) does not say what it is: only the number of words can then be wrong, which shows as a word id that the
    model does not have.
    """
    ours, meta = tuple(model.config.vision.image_size), split.meta
    if meta is None:
        return
    if tuple(meta["image_size"]) != ours:
        raise InputError(
            f"{split.folder} was built with --img-size {_shown(meta['image_size'])} but {path} takes {_shown(ours)}: "
            "build batches of that size, or take another checkpoint"
        )
    words, theirs = model.config.language.vocabulary_size, meta["vocabulary"]
    same = words == theirs["size"]  # the authors' files have weights only
    if model.subwords:  # reads the expressions, and no ids
        same = True
    elif model.vocabulary is not None:
        same = Vocabulary(model.vocabulary).sha256 == theirs["sha256"]
    if not same:
        raise InputError(
            f"the vocabulary of {split.folder} ({theirs['size']} words) is not that of {path} ({words} words): "
            "build the batches with the vocabulary that the model was trained with"
        )
    trained_on = model.provenance["data"].get("dataset")  # "unc, Gref" of two
    if trained_on and split.dataset not in trained_on.split(", ") and not other_dataset:
        raise InputError(
            f"{path} was trained on {trained_on} and {split.folder} holds {split.dataset}: "
            "give the other --data_dir, or --allow_other_dataset if that is what you want to measure"
        )


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]},{size[1]}"
