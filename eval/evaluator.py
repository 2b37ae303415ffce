"""The one evaluator: validation during training and `eval/evaluate.py` both call `evaluate`.

docs/PAPER.md has the protocol.

The way of a sample: image at its original size -> normalised -> resized and centred on the S x S canvas -> encoded once
for all its expressions -> logits -> resized and cropped back to the original size -> threshold -> I and U in pixels.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eval.boxes import box_overlap, mask_boxes
from eval.loaders import PREFETCH, check_shared_memory, loading, shared
from eval.metrics import RunningIoU, SampleScore
from models.inference import THRESHOLD, canvas_logits, resize_and_crop, to_canvas
from utils import device as distributed
from utils.cli import progress_bar
from utils.device import Ranks, autocast
from utils.errors import InputError
from utils.options import COUNT_OR_0, option
from utils.prepared import META, PreparedSplit, texts_digest
from utils.text import Vocabulary, tokenize

GPU_EXPRESSIONS = 32  # at a time on a GPU, if --batch_size is not larger: 8 would leave it idle between launches


class ImageGroup(NamedTuple):
    """An image at its original size and all its expressions."""

    indices: list[int]  # of the expressions, in the split
    sentences: list[str]  # as they are read
    lengths: list[int]  # tokens of the expressions as the split has them
    name: str  # of the image
    image: Tensor  # H W 3, uint8
    ids: Tensor  # n 20, int64
    masks: Tensor  # refs H W, bool
    targets: list[int]  # which of `masks` each expression is judged against


class ImageGroups(Dataset):
    """The groups of a split. An InputError is returned, not raised, so that it leaves a worker as the one line it is.

    `rotate`: judge each expression against the next ref of its image. `reword`: see `evaluate`; `encode`, what turns an
    expression into ids, int64 [20].
    """

    def __init__(self, split: PreparedSplit, groups: list[list[int]], rotate: bool = False, reword=None, encode=None):
        self.split, self.groups, self.rotate = split, groups, rotate
        self.reword, self.encode = reword, encode

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> ImageGroup | InputError:
        indices, split = self.groups[number], self.split
        try:
            ids, sentences, names = zip(*map(split.text, indices), strict=True)
            lengths = [len(tokenize(sentence)) for sentence in sentences]
            if self.reword:
                ids, sentences = zip(*map(self._reworded, indices, ids, sentences), strict=True)
            image = split.image(indices[0])
            keys = [split.ref(i) for i in indices]
            refs = list(dict.fromkeys(keys))  # in order of appearance
            firsts = [indices[keys.index(ref)] for ref in refs]
            masks = [split.mask(i) for i in firsts]
            for i, mask in zip(firsts, masks, strict=True):
                if mask.shape != image.shape[:2]:
                    sizes = "the mask is {} x {} and the image {} x {} (height x width)"
                    raise split.broken(i, sizes.format(*mask.shape, *image.shape[:2]))
        except InputError as error:
            return error
        image, ids, masks = (shared(torch.from_numpy(array)) for array in (image, np.stack(ids), np.stack(masks)))
        targets = [(refs.index(key) + self.rotate) % len(refs) for key in keys]
        return ImageGroup(list(indices), list(sentences), lengths, names[0], image, ids, masks, targets)

    def _reworded(self, index: int, ids: np.ndarray, sentence: str) -> tuple[np.ndarray, str]:
        """Ids and text of a changed expression. Raises InputError if the split's own ids are not those of its text."""
        changed = self.reword(index, sentence)
        if changed == sentence:
            return ids, sentence
        if not np.array_equal(self.encode(sentence), ids):
            raise self.split.broken(index, "its ids are not those of its words in the model's vocabulary")
        return self.encode(changed), changed


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
    loader = iter(DataLoader(groups, batch_size=None, pin_memory=pin_memory, **processes))
    while batch := list(islice(loader, batch_size)):
        for group in batch:
            if isinstance(group, InputError):
                raise group
        yield batch


@dataclass(frozen=True)
class EvalSettings:
    """What decides the numbers (threshold, pad, antialias, amp) and what decides only memory and speed (batch_size).

    A pixel belongs to the object if its logit is at least `threshold`. pad: "grey" fills the canvas with zeros after
    normalisation (the authors' code), "black" with normalised black (as in training). amp: a name of
    `utils.device.AMP_DTYPES`; None: float32. A mask of fewer pixels than `no_target_pixels` counts as empty.
    """

    pad: str = option(
        "grey", "canvas around the image; training pads black", flag="eval_pad", choices=["grey", "black"]
    )
    antialias: bool = option(False, "shrink images through an anti-aliasing filter", flag="eval_antialias")
    threshold: float = option(THRESHOLD, "logit from which a pixel belongs to the object", limits=(-1e6, 1e6))
    batch_size: int = option(
        8, "images, and expressions, at a time", limits=(1, 1024), harmless="only speed and memory"
    )
    amp: str | None = None
    no_target_pixels: int = option(
        0, "pixels below which a prediction counts as none, for expressions without an object", limits=COUNT_OR_0
    )


class Prediction(NamedTuple):
    """What `on_sample` gets, at the original size.

    Image H x W x 3 uint8, mask H x W bool (the ground truth), logits H x W float32, found H x W bool (the prediction).
    """

    score: SampleScore
    image: np.ndarray
    mask: np.ndarray
    logits: np.ndarray
    found: np.ndarray


def evaluate(
    model: nn.Module,
    split: PreparedSplit,
    settings: EvalSettings | None = None,
    ranks: Ranks | None = None,
    *,
    num_workers: int = 0,
    rotate_expressions: bool = False,
    reword: Callable[[int, str], str] | None = None,
    on_sample: Callable[[Prediction], None] | None = None,
    shown: Collection[int] | None = None,
    progress: bool = True,
) -> list[SampleScore]:
    """Judge each expression of `split` exactly once; the scores by index, the same on each process.

    A collective call: each process has to make it, and judges each `ranks.world`-th image with all its expressions.
    Args: model, a ReSTR on the device of `ranks` (unwrapped; default: alone, on the CPU), which runs in eval mode and
    is left in the mode it came in; num_workers, processes that decode images ahead; on_sample, called with the
    Prediction of each of this process's expressions, or of those whose index is in `shown`; rotate_expressions, a
    control, not a metric: each expression is judged against the mask of the next ref of its image (an image of one ref
    stays as it is), so that a model which finds objects without reading loses nothing; reword, other controls: what
    the model reads in place of an expression of that number, which is the `sentence` of its score (`length` stays).
    Raises InputError for data that cannot be read, ids outside the model's vocabulary, logits that are not finite, and
    a split whose expressions are not those that its meta.json was written for.
    """
    settings, ranks = settings or EvalSettings(), ranks or Ranks(torch.device("cpu"))
    split.subwords = model.subwords  # with which it reads the expressions, in place of the stored ids
    watched = () if on_sample is None else range(len(split)) if shown is None else shown
    groups = split.image_groups()[ranks.rank :: ranks.world]
    images = ImageGroups(split, groups, rotate_expressions, reword, reword and encoder(model, split))
    scores, running = [], RunningIoU()
    training, benchmark = model.training, torch.backends.cudnn.benchmark
    hidden = not (progress and ranks.is_main)
    how = {"desc": f"{split.dataset} {split.split}", "unit": "expr", "leave": False, "disable": hidden}
    bar = progress_bar(total=sum(map(len, groups)), **how)
    model.eval()
    torch.backends.cudnn.benchmark = False  # it would try all ways again for each number of expressions
    try:
        with torch.inference_mode(), bar:
            for batch in load(images, settings.batch_size, num_workers, ranks.device.type == "cuda"):
                new, predictions = _judge(model, split, batch, settings, ranks.device, watched)
                for prediction in predictions:
                    on_sample(prediction)
                scores += new
                running.add(new)
                bar.set_postfix_str(str(running), refresh=False)
                bar.update(len(new))
    finally:
        model.train(training)
        torch.backends.cudnn.benchmark = benchmark
    scores = sorted(distributed.gather(scores), key=lambda score: score.index)
    check_complete(scores, split, changed=reword is not None)
    return scores


def encoder(model: nn.Module, split: PreparedSplit) -> Callable[[str], np.ndarray]:
    """What turns an expression into ids as `split` holds them. Raises InputError if neither side knows the words."""
    words = model.subwords or (Vocabulary(model.vocabulary) if model.vocabulary else split.vocabulary())
    return words.ids


def check_complete(scores: list[SampleScore], split: PreparedSplit, changed: bool = False) -> None:
    """Raise InputError unless every expression of the split was judged exactly once, and meta.json is of just these.

    `changed`: the scores hold other texts than the split, which are not compared.
    """
    judged = [score.index for score in scores]
    if judged != list(range(len(split))):
        raise InputError(
            f"{len(judged)} expressions ({len(set(judged))} different) were evaluated but the split has {len(split)}"
        )
    entry = split.meta["splits"][split.split] if split.meta else {}
    built = entry.get("texts_sha256") if len(split) == split.whole else None  # folders of version 1.0 do not say
    if built and not changed and built != texts_digest((score.image_name, score.sentence) for score in scores):
        raise InputError(
            f"{split.folder}: the {len(split):,} expressions of {split.split} are not those that {META} was written "
            "for; move the folder away and build it again with build_batches.py"
        )


def count_rotated(split: PreparedSplit) -> int:
    """How many expressions `rotate_expressions` sets on another ref: those of images with at least two refs."""
    return sum(len(group) for group in split.image_groups() if len({split.ref(i) for i in group}) > 1)


def _judge(
    model: nn.Module,
    split: PreparedSplit,
    batch: list[ImageGroup],
    settings: EvalSettings,
    device: torch.device,
    watched: Collection[int],
) -> tuple[list[SampleScore], list[Prediction]]:
    """Scores of all expressions of a few images, and the Predictions of those `watched`; without any, one wait."""
    counts, outputs = [], {}
    sent = {id(group): group.masks.to(device, non_blocking=True) for group in batch}  # once, from pinned memory
    for group, rows, logits in _segment(model, batch, settings, device):
        masks = torch.stack([sent[id(group)][target] for target in group.targets[rows]])  # n H W
        found = logits >= settings.threshold
        if settings.no_target_pixels:
            found &= (found.sum((1, 2)) >= settings.no_target_pixels)[:, None, None]
        pixels = [mask.sum((1, 2)) for mask in (found & masks, found | masks, masks)]
        pixels += [logits.isfinite().flatten(1).all(1), *box_overlap(mask_boxes(found), mask_boxes(masks))]
        counts.append(torch.stack([count.long() for count in pixels], 1))
        for index, *output in zip(group.indices[rows], logits, found, strict=True):
            if index in watched:
                outputs[index] = [own.cpu().numpy() for own in output]
    counted = iter(torch.cat(counts).tolist())
    scores, predictions = [], []
    for group in batch:
        for index, sentence, length, target in zip(
            group.indices, group.sentences, group.lengths, group.targets, strict=True
        ):
            name, (intersection, union, true, finite, box_hit, box_union) = split.name(index), next(counted)
            if not finite:
                raise InputError(
                    f"the model's logits for {name} are not finite: its training has diverged, or the checkpoint is "
                    "damaged; take an earlier one"
                )
            box_iou = box_hit / box_union if box_union else 1.0
            scores.append(SampleScore(index, name, intersection, union, length, sentence, group.name, true, box_iou))
            if index in outputs:
                pictures = group.image.numpy(), group.masks[target].numpy()
                predictions.append(Prediction(scores[-1], *pictures, *outputs[index]))
    return scores, predictions


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU from pinned memory, so that this process need not wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _segment(
    model: nn.Module, batch: list[ImageGroup], settings: EvalSettings, device: torch.device
) -> Iterator[tuple[ImageGroup, slice, Tensor]]:
    """Logits of all expressions of a few images, in order: (image, which of its expressions, n H W at its size)."""
    images = [group.image.to(device, non_blocking=True) for group in batch]
    canvases = [to_canvas(model, image, settings.pad, settings.antialias) for image in images]
    with autocast(device, settings.amp):
        v = model.encode_image(torch.cat(canvases))  # images N d
    ids, known = torch.cat([group.ids for group in batch]), model.config.language.vocabulary_size  # expressions 20
    if ids.max() >= known:
        raise InputError(
            f"word id {int(ids.max())} in the prepared data of {', '.join(group.name for group in batch[:3])} is "
            f"outside the model's vocabulary of {known} words: the data was built with another vocabulary"
        )
    ids = _sent(ids, device)
    rows = [(number, row) for number, group in enumerate(batch) for row in range(len(group.indices))]
    owners = _sent(torch.tensor([number for number, _ in rows]), device)  # image of each expression
    size = max(settings.batch_size, GPU_EXPRESSIONS if device.type == "cuda" else 1)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        with autocast(device, settings.amp):
            logits, _ = canvas_logits(model, v[owners[start : start + len(chunk)]], ids[start : start + len(chunk)])
        for number, members in groupby(range(len(chunk)), key=lambda place: chunk[place][0]):
            places = list(members)  # of one image's expressions in the chunk
            first, height, width = chunk[places[0]][1], *batch[number].image.shape[:2]
            own = resize_and_crop(logits[places[0] : places[-1] + 1], height, width)[:, 0]  # n H W
            yield batch[number], slice(first, first + len(places)), own
