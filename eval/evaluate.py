r"""Evaluate checkpoints on a split: oIoU, mIoU, Prec@X and the table by expression length.

From the repository or from inside eval/, on one process or under torchrun:

    python eval/evaluate.py --data_dir data/mscoco/Gref_480_batch --set val \
        --restore_refseg weights/test --iters 25000
    torchrun --nproc_per_node 8 eval/evaluate.py --data_dir data/mscoco/unc_480_batch --set testA \
        --checkpoint weights/unc/best.pth
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from eval.checkpoints import check_fit, find_checkpoints, load_model, step_of
from eval.evaluator import PADS, EvalSettings, Prediction, check_complete, count_rotated, evaluate, gather_scores
from eval.metrics import SampleScore, format_table, overall_iou, summarise
from eval.provenance import provenance
from eval.report.thumbnails import Thumbnails
from eval.report.write import Other, read_other, write_report
from eval.visualise import write_prediction
from models.checkpoint import checkpoint_file, file_sha256
from models.inference import THRESHOLD
from models.restr import ReSTR
from utils import device as distributed
from utils.cli import ArgumentParser, check_limits, run_main, size
from utils.device import AMP_DTYPES
from utils.files.writing import atomic_write, made_folder, write_json
from utils.loaders import explained_loaders
from utils.prepared import META, PreparedSplit

LIMITS = {"batch_size": (1, 1024), "num_workers": (0, 1024), "seed": (0, 2**63 - 1)}  # flag -> least and most


def parse(arguments: list[str] | None) -> Namespace:
    """The command line; dashes and underscores are the same in every flag."""
    parser = ArgumentParser(description=__doc__)
    _add_data_and_model(parser)
    _add_protocol(parser.add_argument_group("protocol"))
    _add_running(parser.add_argument_group("running and output"))
    distributed.add_local_rank(parser)
    options = parser.parse_args(arguments)
    check_limits(options, LIMITS)
    if bool(options.checkpoint) == bool(options.restore_refseg):
        parser.error("give either --restore_refseg DIR with --iters N, or --checkpoint FILE")
    if options.checkpoint and options.iters:
        parser.error("--iters chooses among the files of --restore_refseg; --checkpoint names one")
    if options.against and not options.report:
        parser.error("--against is shown in the report: give --report too")
    return options


def _add(group, name: str, **options) -> None:
    spellings = dict.fromkeys((name, "--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_")))
    group.add_argument(*spellings, dest=name[2:].replace("-", "_"), **options)


def _add_data_and_model(parser: ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    _add(data, "--data_dir", type=Path, required=True, help="batch folder, such as data/mscoco/unc_480_batch")
    _add(data, "--set", default="test", help="split")
    _add(
        data,
        "--input-size",
        type=size,
        metavar="H,W",
        help="height,width in pixels; must be the checkpoint's, which is the default",
    )
    _add(data, "--allow_other_dataset", action="store_true", help="evaluate a model of another data set")
    model = parser.add_argument_group("model")
    _add(model, "--restore_refseg", type=Path, metavar="DIR", help="folder of checkpoints")
    _add(model, "--iters", type=int, nargs="+", metavar="N", help="steps of DIR; 0: each 5000th (default: best.pth)")
    _add(
        model,
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a file, or the folder of its best.pth; not with --restore_refseg",
    )
    _add(model, "--v_backbone", help="checked against the checkpoint, which knows what it is; so are the next four")
    _add(model, "--l_backbone", help="see --v_backbone")
    _add(model, "--mm_fusion", choices=["decoder_transformer"], help="see --v_backbone")
    shared = "see --v_backbone; needed for a file of the authors' code whose fusion encoders share weights"
    _add(model, "--is_shared", action="store_true", help=shared)
    _add(model, "--no_decoder", action="store_true", help="see --v_backbone")
    _add(model, "--adamW", action="store_true", help="accepted because training has it; evaluation has no optimiser")


def _add_protocol(group) -> None:
    _add(group, "--threshold", type=float, default=THRESHOLD, help="logit from which a pixel belongs to the object")
    _add(group, "--eval_pad", choices=PADS, default="grey", help="canvas around the image; training pads black")
    _add(group, "--eval_antialias", action="store_true", help="shrink images through an anti-aliasing filter")
    _add(group, "--amp", action="store_true", help="mixed precision")
    _add(group, "--amp_dtype", default="bf16", choices=[*AMP_DTYPES], help="of --amp; fp16 for GPUs before Ampere")
    rotate = "control: also judge each expression against the next ref of its image; --output_dir gets that result"
    _add(group, "--rotate_expressions", action="store_true", help=rotate)


def _add_running(group) -> None:
    output = "folder of metrics.json, one below it for each of several --iters (default: eval_* by the checkpoint)"
    _add(group, "--output_dir", type=Path, help=output)
    _add(group, "--is_vis", action="store_true", help="write image, ground truth, soft and hard prediction to vis/")
    report = "write report.html, which shows where the model fails: tables, charts, pictures; any browser opens it"
    _add(group, "--report", action="store_true", help=report)
    against = "metrics.json of another checkpoint on this split, samples.jsonl beside it: the report compares with it"
    _add(group, "--against", type=Path, metavar="FILE", help=against)
    _add(group, "--batch_size", type=int, default=8, help="images, and expressions, at a time")
    _add(group, "--num_workers", type=int, default=2, help="processes that decode images; 0: none")
    _add(group, "--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    _add(group, "--seed", type=int, default=1, help="of torch; evaluation itself draws no random numbers")


def main(arguments: list[str] | None = None) -> None:
    """Evaluate each checkpoint asked for, write its files, print one table."""
    options = parse(arguments)
    amp = options.amp_dtype if options.amp else None
    settings = EvalSettings(options.threshold, options.eval_pad, options.eval_antialias, options.batch_size, amp)
    split = PreparedSplit(options.data_dir, options.set)
    other = read_other(options.against, split) if options.against else None
    paths = [checkpoint_file(options.checkpoint)] if options.checkpoint else []
    if options.restore_refseg:
        paths = find_checkpoints(options.restore_refseg, options.iters, split.dataset)
    rows = {}
    with distributed.group(options.device, options.local_rank) as ranks:
        torch.manual_seed(options.seed)
        for path in paths:
            model = load_model(path, ranks.device, vars(options))
            check_fit(model, path, split, options.input_size, options.allow_other_dataset)
            folder = _output_folder(options, split, step_of(model, path), path, several=len(paths) > 1)
            with made_folder(folder / "vis" if options.is_vis else folder):
                metrics = _evaluate(model, split, settings, ranks, options, folder, other)
            rotated = " rotated" if options.rotate_expressions else ""
            rows[f"{split.dataset} {options.set} {step_of(model, path)}{rotated}"] = metrics
        if ranks.is_main:
            _print(rows)


def _evaluate(
    model: ReSTR,
    split: PreparedSplit,
    settings: EvalSettings,
    ranks: distributed.Ranks,
    options: Namespace,
    folder: Path,
    other: Other | None,
) -> dict:
    """Metrics of one checkpoint; the first process writes them into `folder`, with a report beside `other`'s."""
    thumbnails = Thumbnails(settings.threshold) if options.report else None
    on_sample = _watcher(thumbnails, folder / "vis" if options.is_vis else None, settings.threshold)
    with explained_loaders():
        scores, control = _judge(model, split, settings, ranks, options, on_sample)
    metrics = summarise(scores, split.dataset) | control
    if thumbnails:
        thumbnails.gather()
    if ranks.is_main:
        record = metrics | _record(model, split, settings, ranks.device)
        if thumbnails:
            write_report(folder / "report.html", record, scores, thumbnails, other)
        _write(folder, scores, record)
        print(f"results: {folder}")
    return metrics


def _output_folder(options: Namespace, split: PreparedSplit, step: str, path: Path, several: bool) -> Path:
    """--output_dir, or beside the checkpoint a folder whose name tells the split and what is not the default."""
    if options.output_dir:
        folder = options.output_dir / step if several else options.output_dir
    else:
        marks = {
            "rotated": options.rotate_expressions,
            options.eval_pad: options.eval_pad != "grey",
            "antialias": options.eval_antialias,
            f"threshold{options.threshold:g}": options.threshold != THRESHOLD,
            options.amp_dtype: options.amp,
        }
        folder = path.parent / "_".join(["eval", split.dataset, options.set, step, *(m for m in marks if marks[m])])
    return folder


def _watcher(
    thumbnails: Thumbnails | None, pictures: Path | None, threshold: float
) -> Callable[[Prediction], None] | None:
    """What is done with each prediction: kept as a thumbnail, drawn into the folder `pictures`, both, nothing."""
    calls = [thumbnails] if thumbnails else []
    if pictures:
        calls.append(partial(write_prediction, pictures, threshold=threshold))

    def watch(prediction: Prediction) -> None:
        for call in calls:
            call(prediction)

    return watch if calls else None


def _judge(
    model: ReSTR,
    split: PreparedSplit,
    settings: EvalSettings,
    ranks: distributed.Ranks,
    options: Namespace,
    on_sample: Callable[[Prediction], None] | None,
) -> tuple[list[SampleScore], dict]:
    """Scores of the whole split on every rank; for the control the rotated ones, and what it is compared with."""

    def run(**more) -> list[SampleScore]:
        own = evaluate(
            model,
            split,
            settings,
            ranks.device,
            rank=ranks.rank,
            world=ranks.world,
            num_workers=options.num_workers,
            progress=ranks.is_main,
            **more,
        )
        scores = gather_scores(own)
        check_complete(scores, split)
        return scores

    if not options.rotate_expressions:
        return run(on_sample=on_sample), {}
    unrotated = overall_iou(run())
    control = {"rotated": count_rotated(split), "oIoU_unrotated": unrotated}
    return run(on_sample=on_sample, rotate_expressions=True), {"control": control}


def _record(model: ReSTR, split: PreparedSplit, settings: EvalSettings, device: torch.device) -> dict:
    """What a number has to be traced by."""
    checkpoint = {key: model.provenance[key] for key in ("file", "sha256", "step")}
    meta = split.folder / META  # the reference makes none
    return {
        "dataset": split.dataset,
        "split": split.split,
        "checkpoint": checkpoint,
        "data": {"folder": str(split.folder.resolve()), "meta_sha256": file_sha256(meta) if meta.is_file() else None},
        "settings": asdict(settings) | {"image_size": list(model.config.vision.image_size)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **provenance(),
    }


def _write(folder: Path, scores: list[SampleScore], metrics: dict) -> None:
    """samples.jsonl, one expression a line, and then metrics.json, whose presence says that all is there."""
    with atomic_write(folder / "samples.jsonl") as file:
        for score in scores:
            file.write((json.dumps(asdict(score)) + "\n").encode())
    write_json(folder / "metrics.json", metrics)


def _print(rows: dict[str, dict]) -> None:
    print(format_table(rows, by_length=len(rows) == 1))
    for title, metrics in rows.items():
        if "control" in metrics:
            n, before = metrics["control"]["rotated"], metrics["control"]["oIoU_unrotated"]
            print(
                f"\n{title}: control, not a result. Judging {n} of {metrics['n_samples']} expressions against the next "
                f"ref of their image: oIoU {before:.2f} -> {metrics['oIoU']:.2f}, {before - metrics['oIoU']:.2f} lost"
            )


if __name__ == "__main__":
    run_main(main)
