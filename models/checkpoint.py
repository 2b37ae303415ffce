"""Self-describing checkpoints, and those of the authors' code."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.config import ReSTRConfig, TextEncoderConfig
from models.reference import from_reference, reference_config
from models.restr import ReSTR, model_with
from models.tensor_file import load_tensors
from utils.errors import InputError
from utils.files.writing import atomic_write
from utils.hub import WEIGHTS, fetch, is_address, read_files
from utils.subwords import Subwords

FORMAT, VERSION = "restr-checkpoint", 1
MAX_STEP = 10**12
REST = {"vocabulary": list | str | None, "data": dict, "step": int, "metrics": dict, "training": dict | None}


@dataclass
class Checkpoint:
    """What a checkpoint file holds. `training` (optimiser, random state, ...) is only in `last.pth`."""

    weights: dict[str, torch.Tensor]
    config: ReSTRConfig
    vocabulary: list[str] | str | None  # str: a tokeniser; None: not known (a file of the authors' code)
    data: dict = field(default_factory=dict)  # "dataset", "image_size", "vocabulary_sha256", ...
    step: int = 0
    metrics: dict = field(default_factory=dict)
    training: dict | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint`, for `torch.load(weights_only=True)`, under a temporary name, flush it and rename it.

    Raises InputError or OSError if it cannot be written; a file that was there before stays.
    """
    try:
        with atomic_write(path, durable=True) as file:
            torch.save(checkpoint_values(checkpoint), file)
    except RuntimeError as error:  # torch.save hides the operating system's error behind its own
        reason = error.__context__ or error
        raise InputError(f"{path}: could not be written ({reason}): make room on the disk") from None


def checkpoint_values(checkpoint: Checkpoint) -> dict:
    """What a file holds of it, by name: plain values and tensors."""
    values = {"format": FORMAT, "version": VERSION, "model": checkpoint.weights, "config": checkpoint.config.to_dict()}
    values |= {name: getattr(checkpoint, name) for name in REST}
    if checkpoint.training is None:
        del values["training"]
    return values


def read_checkpoint(path: Path, reference: dict | None = None, **assumed) -> Checkpoint:
    """Read a checkpoint of ours, .pth or .safetensors (see utils/hub.py), or of the authors' code. No file runs code.

    Args, both for a file of the authors' code, which does not describe itself: reference, their configuration dict;
    assumed, without it, what differs from the default size (keywords of `reference_config`: image_size, shared).
    Raises InputError if the file is missing, damaged or neither of the two.
    """
    values = (read_files if Path(path).suffix == ".safetensors" else load_tensors)(Path(path))
    if values.get("format") != FORMAT:
        return _read_reference(path, values, reference, assumed)
    version = values.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise InputError(f"{path}: written by another version of this code, not in format {VERSION}")
    values = {"training": None, **values}
    for name, kind in {"model": dict, "config": dict, **REST}.items():
        if name not in values or not isinstance(values[name], kind):
            raise InputError(f"{path}: '{name}' is missing or of a wrong kind: the checkpoint is damaged")
    if not 0 <= values["step"] <= MAX_STEP:
        raise InputError(f"{path}: its 'step' is not a number of steps: the checkpoint is damaged")
    try:
        config = ReSTRConfig.from_dict(values["config"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    words, size = values["vocabulary"], config.language.vocabulary_size
    own = isinstance(config.language, TextEncoderConfig)  # load_restr checks its tokeniser
    wrong = not isinstance(words, list) or len(words) != size or not all(isinstance(word, str) for word in words)
    if words is not None and not own and wrong:
        raise InputError(f"{path}: its vocabulary is not the {size} words of its model: the checkpoint is damaged")
    return Checkpoint(values["model"], config, **{name: values[name] for name in REST})


def load_restr(
    path: Path | str, device: str | torch.device | None = None, reference: dict | None = None, **assumed
) -> ReSTR:
    """The model of a checkpoint file, in eval mode, with `vocabulary`, `subwords` and `provenance`.

    `path`: see `checkpoint_file`. `device`: by default CUDA if available, else the CPU. `provenance` is a dict of the
    file's name, its sha256, `data`, `step` and `metrics`. `reference` and `assumed` are those of `read_checkpoint`.
    Raises InputError.
    """
    path = checkpoint_file(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = read_checkpoint(path, reference, **assumed)
    subwords = tokeniser_of(checkpoint, path)
    try:
        model = model_with(checkpoint.config, checkpoint.weights).to(device)
    except InputError as error:
        raise InputError(f"{path}: the weights do not fit its configuration: {error}") from None
    model.vocabulary, model.subwords = checkpoint.vocabulary, subwords
    known = {name: getattr(checkpoint, name) for name in ("data", "step", "metrics")}
    model.provenance = {"file": str(path), "sha256": file_sha256(path), **known}
    return model


def tokeniser_of(checkpoint: Checkpoint, path: Path) -> Subwords | None:
    """That of its text encoder of transformers, if it has one. Raises InputError, beginning with `path`, if damaged."""
    language = checkpoint.config.language
    if not isinstance(language, TextEncoderConfig):
        return None
    return Subwords(checkpoint.vocabulary, language.text_length, language.vocabulary_size, f"{path}: its tokeniser")


def checkpoint_file(path: Path | str) -> Path:
    """`path`; best.pth or else model.safetensors in it, if it is a folder; the local file of hf://owner/name.

    Raises InputError for a model that the hub does not give.
    """
    if is_address(path):
        return fetch(path)
    path = Path(path)
    if not path.is_dir():
        return path
    return path / (WEIGHTS if (path / WEIGHTS).is_file() and not (path / "best.pth").is_file() else "best.pth")


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_reference(path: Path, values: dict, config: dict | None, assumed: dict) -> Checkpoint:
    """The authors' state dict is the whole file, or stands in it as "model" or "state_dict"."""
    states = [state for state in (values, values.get("model"), values.get("state_dict")) if isinstance(state, dict)]
    state = next((state for state in states if any("encoder_l." in str(name) for name in state)), None)
    if state is None:
        raise InputError(f"{path}: neither a checkpoint of this code nor one of the authors' code")
    try:
        model = from_reference(state, config or reference_config(state, **assumed))
    except InputError as error:
        remedy = "say is_shared if its encoders share weights, or give python -m models.convert its configuration"
        raise InputError(f"{path}: {error}{'' if config else f'; {remedy}'}") from None
    return Checkpoint(model.state_dict(), model.config, vocabulary=None, data={"image_size": list(model.image_size)})
