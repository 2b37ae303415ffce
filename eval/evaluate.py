r"""Evaluate checkpoints on a split: oIoU, mIoU, Prec@X and the table by expression length.

From the repository or from inside eval/, on one process or under torchrun:

    python eval/evaluate.py --data_dir data/mscoco/Gref_480_batch --set val --checkpoint weights/restr_Gref/best.pth
    python eval/evaluate.py --data_dir data/mscoco/Gref_480_batch --set val --restore_refseg weights/test --iters 400000
    torchrun --nproc_per_node 8 eval/evaluate.py --data_dir data/mscoco/unc_480_batch --set testA \
        --checkpoint weights/unc/best.pth
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from eval.checkpoints import check_fit, find_checkpoints, load_model, step_of
from eval.controls import Control
from eval.evaluator import EvalSettings, count_rotated, evaluate
from eval.loaders import default_workers, explained_loaders
from eval.metrics import SampleScore, format_table, overall_iou, summarise
from eval.report.write import Other, Thumbnails, read_other, write_report
from eval.visualise import Prediction, spread, write_prediction
from models.checkpoint import checkpoint_file, file_sha256
from models.restr import ReSTR
from utils import device as distributed
from utils.cli import ArgumentParser, run_main
from utils.device import Precision, Process, Ranks
from utils.files.writing import atomic_write, made_folder, write_json
from utils.hub import is_address
from utils.options import COUNT_OR_0, add_options, option, read_options, size
from utils.prepared import META, PreparedSplit
from utils.provenance import facts

PICTURES = 100  # expressions of --is_vis without a number


@dataclass
class Data:
    """What is evaluated on."""

    data_dir: Path = option(..., "prepared data, such as data/mscoco/unc_480_batch")
    set: str = option("test", "split")
    input_size: tuple | None = option(
        None, "height,width in pixels; must be the checkpoint's, which is the default", type=size, metavar="H,W"
    )
    allow_other_dataset: bool = option(False, "evaluate a model of another data set")


@dataclass
class Model:
    """Which checkpoints are evaluated; all but the first three are checked against what each one says of itself."""

    restore_refseg: Path | None = option(None, "folder of checkpoints")
    iters: int | None = option(None, "steps of DIR; 0: each 5000th (default: best.pth)", nargs="+")
    checkpoint: Path | None = option(
        None, "a file, the folder of its best.pth, or hf://owner/name; not with --restore_refseg"
    )
    v_backbone: str | None = option(None, "checked against the checkpoint, as the next four are")
    l_backbone: str | None = option(None, "see --v_backbone")
    mm_fusion: str | None = option(None, "see --v_backbone", choices=["decoder_transformer"])
    is_shared: bool = option(
        False, "see --v_backbone; needed for a file of the authors' code whose fusion encoders share weights"
    )
    no_decoder: bool = option(False, "see --v_backbone")
    adamW: bool = option(False, "accepted because training has it; evaluation has no optimiser")


@dataclass
class Output:
    """What is written, and how fast."""

    output_dir: Path | None = option(
        None, "folder of metrics.json, one below it for each of several --iters (default: eval_* by the checkpoint)"
    )
    is_vis: int | None = option(
        None,
        "write image, ground truth, soft and hard prediction of N expressions, evenly spread, to vis/, "
        f"about 280 kB each (without N: {PICTURES}; 0: all)",
        limits=COUNT_OR_0,
        nargs="?",
        const=PICTURES,
    )
    report: bool = option(False, "write report.html, which shows where the model fails: tables, charts, images")
    against: Path | None = option(
        None,
        "metrics.json of another checkpoint on this split, with samples.jsonl, for the report to compare with; "
        "shows its masks too if it was evaluated with --report",
    )
    num_workers: int = option(default_workers(), "processes that decode images; 0: none", limits=(0, 1024))
    seed: int = option(1, "seed of what --expressions draws, and of torch, which draws nothing", limits=(0, 2**63 - 1))


def parse(arguments: list[str] | None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(underscores=True, description=__doc__)
    groups = {
        "data": [Data],
        "model": [Model],
        "protocol": [EvalSettings, Precision],
        "control for language": [Control],
        "running and output": [Output, Process],
    }
    for title, kinds in groups.items():
        group = parser.add_argument_group(title)
        for kind in kinds:
            add_options(group, kind)
    args = parser.parse_args(arguments)
    if bool(args.checkpoint) == bool(args.restore_refseg):
        parser.error("give either --restore_refseg DIR with --iters N, or --checkpoint FILE")
    if args.checkpoint and args.iters:
        parser.error("--iters chooses among the files of --restore_refseg; --checkpoint names one")
    if args.checkpoint and is_address(args.checkpoint) and not args.output_dir:
        parser.error("--checkpoint hf://...: has no folder for its results: give --output_dir")
    if args.against and not args.report:
        parser.error("--against is shown in the report: give --report too")
    if args.rotate_expressions and args.expressions not in (None, "rotated"):
        parser.error(f"--rotate_expressions means --expressions rotated, not {args.expressions}: give one of the two")
    if args.first_k and args.expressions != "first_k":
        parser.error("--first_k goes with --expressions first_k: give that too")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Evaluate each checkpoint asked for, write its files, print one table."""
    args = parse(arguments)
    settings = read_options(EvalSettings, args, amp=read_options(Precision, args).amp_dtype)
    split, control = PreparedSplit(args.data_dir, args.set), read_options(Control, args, seed=args.seed)
    other = read_other(args.against, split) if args.against else None
    paths = [checkpoint_file(args.checkpoint)] if args.checkpoint else []
    if args.restore_refseg:
        paths = find_checkpoints(args.restore_refseg, args.iters, split.dataset)
    rows, files = {}, []
    with distributed.group(read_options(Process, args)) as ranks:
        torch.manual_seed(args.seed)
        for path in paths:
            model = load_model(path, ranks.device, vars(args))
            check_fit(model, path, split, args.allow_other_dataset)
            step = step_of(model, path)
            folder = path.parent / "_".join(["eval", split.dataset, args.set, step, *control.marks, *_marks(settings)])
            if args.output_dir:
                folder = args.output_dir / step if len(paths) > 1 else args.output_dir
            with made_folder(folder if args.is_vis is None else folder / "vis"):
                metrics = _evaluate(model, split, settings, ranks, args, folder, other, control)
            rows[" ".join([split.dataset, args.set, step, *control.marks])] = metrics
            files += _files(folder, args, len(split))
        if ranks.is_main:
            _print(rows)
            print("", *files, sep="\n")


def _files(folder: Path, args: Namespace, number: int) -> Iterator[str]:
    """What was written where, a line each; `number` expressions were judged."""
    yield f"metrics   {folder / 'metrics.json'}"
    yield f"samples   {folder / 'samples.jsonl'}"
    if args.report:
        yield f"report    {folder / 'report.html'}"
    if args.is_vis is not None:
        shown = min(args.is_vis or number, number)
        rest = "" if shown == number else "; --is_vis 0: all"
        yield f"pictures  {folder / 'vis'} ({shown:,} of {number:,} expressions{rest})"


def _marks(settings: EvalSettings) -> Iterator[str]:
    """What decides the numbers and is not the default, for the name of a folder: black, antialias, threshold0.5."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and not field.metadata.get("harmless"):
            shown = value if isinstance(value, str) else f"{field.name}{value:g}"
            yield field.name if value is True else shown


def _evaluate(
    model: ReSTR,
    split: PreparedSplit,
    settings: EvalSettings,
    ranks: Ranks,
    args,
    folder: Path,
    other: Other | None,
    control: Control,
) -> dict:
    """Metrics of one checkpoint; the first process writes them into `folder`, with a report beside `other`'s.

    samples.jsonl has one expression a line, with a report also its predicted mask, which a later --against shows;
    metrics.json comes last and says that all is there.
    """
    thumbnails = Thumbnails(other.masks if other else None) if args.report else None
    drawn = set() if args.is_vis is None else spread(len(split), args.is_vis or len(split))

    def show(prediction: Prediction) -> None:
        if thumbnails:
            thumbnails(prediction)
        if prediction.score.index in drawn:
            write_prediction(folder / "vis", prediction)

    judge = partial(evaluate, model, split, settings, ranks, num_workers=args.num_workers)
    how = {"on_sample": show, "shown": None if thumbnails else drawn}
    with explained_loaders(), distributed.explained_memory("pass a smaller --batch_size, or --amp"):
        plain = judge() if control.kind else []
        if control.kind == "rotated":
            how["rotate_expressions"] = True
        elif control.kind:
            how["reword"] = control.reword
        scores = judge(**how)
    metrics = summarise(scores, split.dataset, split.is_generalised)
    if plain:
        metrics["control"] = _control(control, split, plain, scores)
    if thumbnails:
        thumbnails.gather()
    if ranks.is_main:
        record = metrics | _record(model, split, settings, ranks.device)
        if thumbnails:
            write_report(folder / "report.html", record, scores, thumbnails, other)
        with atomic_write(folder / "samples.jsonl") as file:
            for score in scores:
                mask = {"mask": thumbnails.shots[score.index].found} if thumbnails else {}
                file.write((json.dumps(asdict(score) | mask) + "\n").encode())
        write_json(folder / "metrics.json", record)
    return metrics


def _control(control: Control, split: PreparedSplit, plain: list[SampleScore], scores: list[SampleScore]) -> dict:
    """What was done to how many expressions, and the oIoU of the `plain` ones."""
    oiou = overall_iou(plain)
    if control.kind == "rotated":
        changed = count_rotated(split)
        names_of_1_0 = {"rotated": changed, "oIoU_unrotated": oiou}
    else:
        changed, names_of_1_0 = sum(a.sentence != b.sentence for a, b in zip(plain, scores, strict=True)), {}
    return {"expressions": control.kind, "told": control.told, "changed": changed, "oIoU_plain": oiou} | names_of_1_0


def _record(model: ReSTR, split: PreparedSplit, settings: EvalSettings, device: torch.device) -> dict:
    """What a number has to be traced by: checkpoint, data, settings and `facts`."""
    meta = split.folder / META  # the authors' code makes none
    decided = asdict(settings) | {"image_size": list(model.config.vision.image_size)}
    if not settings.no_target_pixels:  # the same file as of version 1.0
        del decided["no_target_pixels"]
    return {
        "dataset": split.dataset,
        "split": split.split,
        "checkpoint": {key: model.provenance[key] for key in ("file", "sha256", "step")},
        "data": {"folder": str(split.folder.resolve()), "meta_sha256": file_sha256(meta) if meta.is_file() else None},
        "settings": decided,
        **facts(device),
    }


def _print(rows: dict[str, dict]) -> None:
    print(format_table(rows))
    for title, metrics in rows.items():
        if "control" in metrics:
            control, after = metrics["control"], metrics["oIoU"]
            counts, before = f"{control['changed']} of {metrics['n_samples']}", control["oIoU_plain"]
            print(
                f"\n{title}: control, not a result. {counts} expressions {control['told']}: "
                f"oIoU {before:.2f} -> {after:.2f}, {before - after:.2f} lost"
            )


if __name__ == "__main__":
    run_main(main)
