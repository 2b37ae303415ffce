"""The one evaluator: validation during training and `eval/evaluate.py` both call `evaluate`.

docs/PAPER.md has the protocol.

The way of a sample: image at its original size -> normalised -> resized and centred on the S x S canvas -> encoded once
for all its expressions -> logits -> resized and cropped back to the original size -> threshold -> I and U in pixels.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eval.loaders import PREFETCH, check_shared_memory, loading, shared
from eval.metrics import RunningIoU, SampleScore
from models.inference import THRESHOLD, canvas_logits, resize_and_crop, to_canvas
from utils import device as distributed
from utils.cli import progress_bar
from utils.device import Ranks, autocast
from utils.errors import InputError
from utils.options import option
from utils.prepared import META, PreparedSplit, texts_digest
from utils.text import tokenize

PADS = ("grey", "black")


class ImageGroup(NamedTuple):
    """An image at its original size and all its expressions."""

    indices: list[int]  # of the expressions, in the split
    sentences: list[str]
    name: str  # of the image
    image: Tensor  # H W 3, uint8
    ids: Tensor  # n 20, int64
    masks: Tensor  # refs H W, bool
    targets: list[int]  # which of `masks` each expression is judged against


class ImageGroups(Dataset):
    """The groups of a split. An InputError is returned, not raised, so that it leaves a worker as the one line it is.

    `rotate`: judge each expression against the next ref of its image (see `evaluator.evaluate`).
    """

    def __init__(self, split: PreparedSplit, groups: list[list[int]], rotate: bool = False):
        self.split, self.groups, self.rotate = split, groups, rotate

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> ImageGroup | InputError:
        indices, split = self.groups[number], self.split
        try:
            texts = [split.text(i) for i in indices]
            image = split.image(indices[0])
            keys = [split.ref(i) for i in indices]
            refs = dict(zip(reversed(keys), reversed(indices), strict=True))  # ref -> its first expression
            refs = {key: refs[key] for key in dict.fromkeys(keys)}  # in order of appearance
            masks = [self._mask(i, image.shape[:2]) for i in refs.values()]
        except InputError as error:
            return error
        return ImageGroup(
            indices=list(indices),
            sentences=[sentence for _, sentence, _ in texts],
            name=texts[0][2],
            image=shared(torch.from_numpy(image)),
            ids=shared(torch.from_numpy(np.stack([ids for ids, _, _ in texts]))),
            masks=shared(torch.from_numpy(np.stack(masks))),
            targets=[([*refs].index(key) + self.rotate) % len(refs) for key in keys],
        )

    def _mask(self, index: int, size: tuple[int, int]) -> np.ndarray:
        mask = self.split.mask(index)
        if mask.shape != size:
            shown = f"the mask is {_shown(mask.shape)} and the image {_shown(size)} (height x width)"
            raise self.split.broken(index, shown)
        return mask


def _shown(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def check_room(split: PreparedSplit, batch_size: int, num_workers: int) -> None:
    """Raise InputError if shared memory has no room for `load`, were all images as large as the split's first."""
    try:
        size = sum(array.nbytes for array in split.sample(0)) if num_workers else 0
    except InputError:  # `load` tells of a sample that cannot be read
        return
    check_shared_memory(size, num_workers, batch_size, _ahead(batch_size, num_workers))


def _ahead(batch_size: int, num_workers: int) -> int:
    """Images that each process decodes ahead."""
    return max(PREFETCH, batch_size // max(1, num_workers))


def load(groups: ImageGroups, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[list[ImageGroup]]:
    """Lists of up to `batch_size` groups, in order. Raises the InputError of a group that cannot be read."""
    check_room(groups.split, batch_size, num_workers)
    processes = loading(num_workers, prefetch_factor=_ahead(batch_size, num_workers))
    loader = DataLoader(groups, batch_size=None, pin_memory=pin_memory, **processes)
    batch = []
    for group in loader:
        if isinstance(group, InputError):
            raise group
        batch.append(group)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class EvalSettings:
    """What decides the numbers (threshold, pad, antialias, amp) and what decides only memory and speed (batch_size).

    A pixel belongs to the object if its logit is at least `threshold`. pad: "grey" fills the canvas with zeros after
    normalisation (the authors' code), "black" with normalised black (as in training). amp: a name of
    `utils.device.AMP_DTYPES`; None: float32. Raises InputError for impossible values.
    """

    pad: str = option("grey", "canvas around the image; training pads black", flag="eval_pad", choices=PADS)
    antialias: bool = option(False, "shrink images through an anti-aliasing filter", flag="eval_antialias")
    threshold: float = option(THRESHOLD, "logit from which a pixel belongs to the object")
    batch_size: int = option(
        8, "images, and expressions, at a time", limits=(1, 1024), harmless="only speed and memory"
    )
    amp: str | None = None

    def __post_init__(self):
        if self.pad not in PADS or self.batch_size < 1 or not math.isfinite(self.threshold):
            raise InputError(f"{self}: threshold must be finite, pad {' or '.join(PADS)}, batch_size at least 1")

    def changes(self) -> dict:
        """The settings that decide the numbers and are not the default."""
        mattering = (field for field in fields(self) if not field.metadata.get("harmless"))
        return {field.name: value for field in mattering if (value := getattr(self, field.name)) != field.default}


class Prediction(NamedTuple):
    """What `on_sample` gets: image H x W x 3 uint8, mask H x W bool, logits H x W float32, at the original size."""

    score: SampleScore
    image: np.ndarray
    mask: np.ndarray
    logits: np.ndarray


def evaluate(
    model: nn.Module, split: PreparedSplit, settings: EvalSettings | None = None, ranks: Ranks | None = None, **more
) -> list[SampleScore]:
    """Judge each expression of `split` exactly once; the scores by index, the same on each process.

    A collective call: with several processes, each has to make it. Args: model, a ReSTR on the device of `ranks`
    (unwrapped; default: alone, on the CPU), which runs in eval mode and is left in the mode it came in; more, as in
    `score_images`. Raises InputError for data that cannot be read, ids outside the model's vocabulary, logits that are
    not finite, and a split whose expressions are not those that its meta.json was written for.
    """
    ranks = ranks or Ranks(torch.device("cpu"))
    own = score_images(model, split, settings or EvalSettings(), ranks, **more)
    scores = sorted(distributed.gather(own), key=lambda score: score.index)
    check_complete(scores, split)
    return scores


def score_images(
    model: nn.Module,
    split: PreparedSplit,
    settings: EvalSettings,
    ranks: Ranks,
    *,
    num_workers: int = 0,
    rotate_expressions: bool = False,
    on_sample: Callable[[Prediction], None] | None = None,
    shown: Collection[int] | None = None,
    progress: bool = True,
) -> list[SampleScore]:
    """This process's share: each `ranks.world`-th image of `split`, with all its expressions.

    `num_workers` processes decode images ahead. `on_sample` is called with the Prediction of each expression, or of
    those whose index is in `shown`.
    `rotate_expressions` is a control, not a metric: each expression is judged against the mask of the next ref of its
    image (an image of one ref stays as it is), so that a model which finds objects without reading loses nothing.
    """
    wanted: Collection[int] = ()
    if on_sample:
        wanted = range(len(split)) if shown is None else shown
    device, groups = ranks.device, split.image_groups()[ranks.rank :: ranks.world]
    images = ImageGroups(split, groups, rotate_expressions)
    batches = load(images, settings.batch_size, num_workers, device.type == "cuda")
    scores: list[SampleScore] = []
    running = RunningIoU()
    hidden = not (progress and ranks.is_main)
    bar = progress_bar(total=sum(map(len, groups)), unit="expr", leave=False, disable=hidden)
    with _judging(model), bar:
        for batch in batches:
            new, predictions = _score_batch(model, split, batch, settings, device, wanted)
            scores += new
            for prediction in predictions:
                on_sample(prediction)
            running.add(new)
            bar.set_postfix_str(str(running), refresh=False)
            bar.update(len(new))
    return scores


@contextmanager
def _judging(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the mode that `model` came in is restored."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def check_complete(scores: list[SampleScore], split: PreparedSplit) -> None:
    """Raise InputError unless every expression of the split was judged exactly once, and meta.json is of just these."""
    judged = [score.index for score in scores]
    if judged != list(range(len(split))):
        raise InputError(
            f"{len(judged)} expressions ({len(set(judged))} different) were evaluated but the split has {len(split)}"
        )
    entry = split.meta["splits"][split.split] if split.meta else {}
    built = entry.get("texts_sha256")  # folders of earlier versions do not say
    if built and built != texts_digest((score.image_name, score.sentence) for score in scores):
        raise InputError(
            f"{split.folder}: the {len(split):,} expressions of {split.split} are not those that {META} was written "
            "for; move the folder away and build it again with build_batches.py"
        )


def count_rotated(split: PreparedSplit) -> int:
    """How many expressions `rotate_expressions` sets on another ref: those of images with at least two refs."""
    return sum(len(group) for group in split.image_groups() if len({split.ref(i) for i in group}) > 1)


def _score_batch(
    model: nn.Module,
    split: PreparedSplit,
    batch: list[ImageGroup],
    settings: EvalSettings,
    device: torch.device,
    wanted: Collection[int],
) -> tuple[list[SampleScore], list[Prediction]]:
    """Scores of all expressions of a few images, and the Predictions wanted; without any, one wait for the device."""
    counts, logits_of = [], {}
    for group, rows, logits in _segment(model, batch, settings, device):
        masks = group.masks[group.targets[rows]].to(device, non_blocking=True)  # n H W
        counts.append(_count(logits, masks, settings.threshold))
        for index, own in zip(group.indices[rows], logits, strict=True):
            if index in wanted:
                logits_of[index] = own.cpu().numpy()
    counted = iter(torch.cat(counts).tolist())  # of each expression: I, U, whether its logits are finite
    scores, predictions = [], []
    for group in batch:
        for row, index in enumerate(group.indices):
            scores.append(_score(split, group, row, *next(counted)))
            if index in logits_of:
                mask = group.masks[group.targets[row]].numpy()
                predictions.append(Prediction(scores[-1], group.image.numpy(), mask, logits_of[index]))
    return scores, predictions


def _segment(
    model: nn.Module, batch: list[ImageGroup], settings: EvalSettings, device: torch.device
) -> Iterator[tuple[ImageGroup, slice, Tensor]]:
    """Logits of all expressions of a few images, in order: (image, which of its expressions, n H W at its size)."""
    images = [group.image.to(device, non_blocking=True) for group in batch]
    canvases = [to_canvas(model, image, settings.pad, settings.antialias) for image in images]
    with autocast(device, settings.amp):
        v = model.encode_image(torch.cat(canvases))  # images N d
    ids = torch.cat([group.ids for group in batch])  # expressions 20
    _check_ids(model, batch, ids)
    ids = ids.to(device, non_blocking=True)
    rows = [(number, row) for number, group in enumerate(batch) for row in range(len(group.indices))]
    owners = torch.tensor([number for number, _ in rows]).to(device, non_blocking=True)  # image of each expression
    for start in range(0, len(rows), settings.batch_size):
        chunk = rows[start : start + settings.batch_size]
        with autocast(device, settings.amp):
            logits, _ = canvas_logits(model, v[owners[start : start + len(chunk)]], ids[start : start + len(chunk)])
        for number, members in groupby(range(len(chunk)), key=lambda place: chunk[place][0]):
            places = list(members)  # of one image's expressions in the chunk
            first, height, width = chunk[places[0]][1], *batch[number].image.shape[:2]
            own = resize_and_crop(logits[places[0] : places[-1] + 1], height, width)[:, 0]  # n H W
            yield batch[number], slice(first, first + len(places)), own


def _count(logits: Tensor, masks: Tensor, threshold: float) -> Tensor:
    """Per expression: pixels in intersection and union, and 1 where all logits are finite; n x 3 int64."""
    found = logits >= threshold
    counts = [(found & masks).sum((1, 2)), (found | masks).sum((1, 2)), logits.isfinite().all(2).all(1)]
    return torch.stack([count.long() for count in counts], 1)


def _score(
    split: PreparedSplit, group: ImageGroup, row: int, intersection: int, union: int, finite: int
) -> SampleScore:
    index, sentence = group.indices[row], group.sentences[row]
    if not finite:
        raise InputError(
            f"the model's logits for {split.name(index)} are not finite: its training has diverged, or the checkpoint "
            "is damaged; take an earlier one"
        )
    return SampleScore(index, split.name(index), intersection, union, len(tokenize(sentence)), sentence, group.name)


def _check_ids(model: nn.Module, batch: list[ImageGroup], ids: Tensor) -> None:
    known = model.config.language.vocabulary_size
    if ids.min() < 0 or ids.max() >= known:
        images = ", ".join(group.name for group in batch[:3])
        raise InputError(
            f"word id {int(ids.max())} in the prepared data of {images} is outside the model's vocabulary of {known} "
            "words: the data was built with another vocabulary"
        )
