"""Every GPU figure of this repository in one command of under ten minutes; needs no data and no pre-trained weights.

    python benchmarks/gpu.py --out gpu_results                   # on a machine with a GPU
    python benchmarks/gpu.py --device cpu --tiny --out toy       # only shows that the script runs

The reference's way (benchmarks/bench_model.py: softmax attention, upsample-then-project decoder) trains under float16
autocast with a gradient scaler, which is its `--amp`, and evaluates one expression at a time in float32. Ours trains
under bfloat16 autocast with fused AdamW, with and without torch.compile. Writes OUT.md and OUT.json after each row.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import gpu_rows
from benchmarks.report import table, where
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.files.writing import atomic_write, write_json

NOT_MEASURED = "not measured"


def parse_args():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="a toy model: shows that the script runs")
    parser.add_argument("--batches", default="8,16,32,64", help="batch sizes of training, samples, from small to large")
    parser.add_argument("--images", type=int, default=8, help="images that evaluation encodes at a time")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls a row; the median counts")
    parser.add_argument(
        "--minutes", type=float, default=6.5, help="minutes after which no further training row is begun"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="OUT.md and OUT.json are written")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: there is no GPU; --device cpu --tiny shows that the script runs")
    return args


def measure(args, keep: Callable[[dict], None]) -> None:
    """All rows as plain numbers; `keep` gets them after each, so that a row which never ends costs only itself."""
    sizes = [int(size) for size in args.batches.split(",")]
    bench = gpu_rows.Bench(torch.device(args.device), args.tiny, args.repeats, 60 * args.minutes)
    values = {"where": where(args.device), "tiny": args.tiny, "training": [], "gb_a_sample": {}}
    values["matmul_tflops"] = gpu_rows.matmul_rate(bench)
    values["flops_a_sample"] = gpu_rows.flops_a_sample(bench)
    values["evaluation"] = gpu_rows.evaluation_rows(bench, args.images)
    values["oiou"] = gpu_rows.metric_change(bench)
    keep(values)
    for row in gpu_rows.training_rows(bench, sizes, values["matmul_tflops"], values["flops_a_sample"]):
        values["training"].append(row)
        values["gb_a_sample"] = gpu_rows.memory_slopes(values["training"])
        keep(values)
        print(row, file=sys.stderr, flush=True)


def markdown(values: dict) -> str:
    """The tables of `measure`'s values."""
    reference = best(values["training"], gpu_rows.REFERENCE.name)
    rows = [_training_row(row, reference) for row in values["training"]]
    head = ("way", "batch", "samples/s", "x the reference's best", "TFLOP/s", "share of the product's rate", "peak GB")
    slopes = values["gb_a_sample"]
    base = slopes.get(gpu_rows.REFERENCE.name)
    memory = [(way, slope, slope / base if base else NOT_MEASURED) for way, slope in slopes.items()]
    evaluation = [
        (row["way"], row["per_s"], row["ratio"], _or(row.get("pixels_differ")), _or(row.get("logits_differ")))
        for row in values["evaluation"]
    ]
    parts = [
        f"{values['where']}{' (toy size: these figures mean nothing)' if values['tiny'] else ''}",
        f"A large bfloat16 product: {values['matmul_tflops']:.3g} TFLOP/s. A sample in training, forward and backward: "
        f"{values['flops_a_sample'] / 1e12:.3g} TFLOP. The 400,000 steps of 8 samples of the schedule: "
        f"{_hours(values['training'], 8)}; its 3.2 million samples at the best rate of any batch size: "
        f"{_hours(values['training'], None)}.",
        "## Training, whole steps from a batch in pinned memory\n\n" + table(head, rows),
        "## Memory of one more sample\n\n" + table(("way", "GB a sample", "of the reference's"), memory or [_none(3)]),
        f"## Evaluation, {gpu_rows.EXPRESSIONS} expressions an image, the networks alone\n\n"
        + table(
            ("way", "expressions/s", "x", "pixels that differ from the reference's way", "logits, largest difference"),
            evaluation,
        ),
        f"oIoU of a model trained for a moment, in float32 and bfloat16: {values['oiou']['fp32']:.3f}, "
        f"{values['oiou']['bf16']:.3f}.",
    ]
    return "\n\n".join(parts) + "\n"


def _hours(rows: list[dict], batch: int | None) -> str:
    rate = max(best([row for row in rows if batch in (None, row["batch"])], name) for name in NAMES)
    return f"{3.2e6 / rate / 3600:.2f} h" if rate else NOT_MEASURED


NAMES = [way.name for way in gpu_rows.OURS]


def best(rows: list[dict], way: str) -> float:
    """The highest rate of a way over its batch sizes; 0.0 if none was measured."""
    return max((row["samples_per_s"] or 0.0 for row in rows if row["way"] == way), default=0.0)


def _training_row(row: dict, reference: float) -> tuple:
    if row["samples_per_s"] is None:
        return row["way"], row["batch"], f"{NOT_MEASURED}: {row['why']}", *_none(4)
    times = row["samples_per_s"] / reference if reference else NOT_MEASURED
    return row["way"], row["batch"], row["samples_per_s"], times, row["tflops"], row["share"], _or(row["gb"])


def _or(value: float | None) -> float | str:
    return NOT_MEASURED if value is None else value


def _none(columns: int) -> tuple[str, ...]:
    return (NOT_MEASURED,) * columns


def main() -> None:
    args = parse_args()

    def keep(values: dict) -> None:
        write_json(args.out.with_suffix(".json"), values)
        with atomic_write(args.out.with_suffix(".md")) as file:
            file.write(markdown(values).encode())

    measure(args, keep)
    print(args.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    run_main(main)
