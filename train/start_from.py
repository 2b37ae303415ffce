"""Going on from a trained model: a new run on other data whose first weights are those of a checkpoint."""

from dataclasses import fields, replace
from pathlib import Path

import torch

from models import ReSTR, ReSTRConfig, load_restr
from utils.errors import InputError, one_line
from utils.text import Vocabulary, read_embeddings

FREE = ("image_size", "vocabulary_size", "drop_path")  # what a new run may have otherwise than the model it starts from


def start_from(model: ReSTR, file: Path | str, vocabulary: Vocabulary, embeddings: Path | None, seed: int) -> str:
    """Fill `model` with the weights of a checkpoint, ours or the authors', and say what came from where.

    Word embeddings go by word; those of new words come from the table `embeddings` or, without one, are drawn from the
    mean and deviation of each channel of the checkpoint's own. Positions are resampled to the new image size.
    A file of the authors' code does not say its words: they count as `vocabulary` if they are as many.
    Raises InputError: no such file, another model, weights that are not finite, a table that does not fit.
    """
    source = load_restr(file, "cpu", shared=model.config.fusion.shared)
    _check_same(file, source, model)
    source.vision.backbone.set_input_size(model.image_size)
    if model.subwords:
        if source.subwords.words != model.subwords.words:
            raise InputError(
                f"{file}: has another tokeniser than --l_backbone: give the folder that it was trained from"
            )
        model.load_state_dict(source.state_dict())
        return f"{source.provenance['file']}; words: those of its tokeniser"
    words = Vocabulary(source.vocabulary or vocabulary.words, file).words
    old, number = source.language.embedding.weight.detach(), len(vocabulary)
    if len(words) != len(old):
        fault = f"does not say which its {len(old):,} words are, and the data have {number:,}"
        raise InputError(f"{file}: {fault}: convert it with python -m models.convert --vocabulary")
    known = {word: row for row, word in enumerate(words)}  # of equal words the last has the id
    rows = torch.tensor([known.get(word, -1) for word in vocabulary.words])
    if embeddings:
        table = torch.from_numpy(read_embeddings(embeddings, number, old.shape[1]))
    else:
        noise = torch.randn(number, old.shape[1], generator=torch.Generator().manual_seed(seed))
        table = old[1:].mean(0) + old[1:].std(0) * noise  # but the padding's
    table[rows >= 0] = old[rows[rows >= 0]]
    model.load_state_dict(source.state_dict() | {"language.embedding.weight": table})
    carried = int((rows >= 0).sum())
    origin = f"from {embeddings}" if embeddings else "drawn"
    return f"{source.provenance['file']}; words: {carried:,} carried over, {number - carried:,} {origin}"


def _check_same(file: Path | str, source: ReSTR, model: ReSTR) -> None:
    """Raise InputError unless `source`, of `file`, is finite and a model as `model` but for FREE."""
    differences = []
    for part in fields(model.config):
        found, asked = (getattr(_config(each), part.name) for each in (source, model))
        if type(found) is not type(asked):
            differences.append(f"another kind of {part.name} encoder")
            continue
        for item in fields(found):
            then, now = getattr(found, item.name), getattr(asked, item.name)
            if then != now and item.compare and item.name not in FREE:
                shown = f"{one_line(then, 40)}, not {one_line(now, 40)}"
                differences.append(f"{part.name} {item.name.replace('_', ' ')} {shown}")
    if differences:
        raise InputError(f"{file}: another model ({'; '.join(differences)}): pass the flags that it was trained with")
    if not all(weight.isfinite().all() for weight in source.state_dict().values()):
        raise InputError(f"{file}: its weights are not finite, its training has diverged: take an earlier checkpoint")


def _config(model: ReSTR) -> ReSTRConfig:
    """Its configuration, with the number of heads of the fusion encoders: the authors' says it, ours by default not."""
    fusion = model.config.fusion
    return replace(model.config, fusion=replace(fusion, heads=fusion.heads or model.vision.heads))
