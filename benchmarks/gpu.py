"""Every GPU figure of this repository in one command of under ten minutes; needs no data and no pre-trained weights.

    python benchmarks/gpu.py --out gpu_results                   # on a machine with a GPU
    python benchmarks/gpu.py --device cpu --tiny --out toy       # only shows that the script runs

The authors' way (benchmarks/plain_restr.py: softmax attention, upsample-then-project decoder) trains under float16
autocast with a gradient scaler, which is its `--amp`, and evaluates one expression at a time in float32. Ours trains
under bfloat16 autocast with fused AdamW, with and without torch.compile. Writes OUT.md and OUT.json after each row.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.report import NOT_MEASURED, seconds, table, where
from benchmarks.ways import EXPRESSIONS, OURS, Bench, Way
from models.inference import THRESHOLD
from models.loss import LossConfig, restr_loss
from tools.model_size import count_flops
from utils.cli import ArgumentParser, run_main
from utils.device import autocast
from utils.errors import InputError, one_line
from utils.files.writing import atomic_write, write_json

AUTHORS = Way("authors' way, fp16", reference=True, amp="fp16")
TRAINING = (  # compiled ones are timed at two batch sizes: each compiles again
    AUTHORS,
    Way("ours, fp32"),
    Way("ours, bf16", amp="bf16"),
    Way("ours, bf16, --grad_checkpoint", amp="bf16", checkpointed=True),
    Way("ours, bf16, --compile", amp="bf16", compiled=True),
    Way("ours, bf16, --compile --grad_checkpoint", amp="bf16", compiled=True, checkpointed=True),
)
PRECISIONS = {"fp32": None, "bf16": "bf16"}


def free(bench: Bench) -> None:
    """Free what the last row held, and reset the memory count."""
    torch.compiler.reset()
    gc.collect()  # a compiled model refers to itself
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matmul_rate(bench: Bench, repeats: int) -> float:
    """TFLOP/s of a large bfloat16 product."""
    n = 64 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    return 2 * n**3 / seconds({"": lambda: a @ a}, repeats, warm=3)[""] / 1e12


def metric_change(bench: Bench) -> dict[str, float]:
    """oIoU, percent, in each precision, of a model trained for a moment, on its own samples."""
    model = bench.network(OURS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if bench.tiny else 1e-4)
    images, ids, _ = (x.to(bench.device) for x in bench.inputs(OURS, 8))
    masks = torch.zeros_like(images[:, :1], dtype=torch.bool)
    height, width = masks.shape[-2:]
    for i in range(8):  # a bright rectangle, elsewhere in each image: not learnt to the last pixel
        masks[i, :, i * height // 16 :, i * width // 32 : (i + 8) * width // 16] = True
    images = torch.where(masks, images // 2 + 128, images // 2)
    for _ in range(30):
        optimizer.zero_grad()
        with autocast(bench.device, "bf16"):
            outputs = model(images, ids)
        restr_loss(*outputs, masks, LossConfig())["loss"].backward()
        optimizer.step()
    scores = {}
    for name, amp in PRECISIONS.items():
        with torch.inference_mode(), autocast(bench.device, amp):
            found = model.eval()(images, ids)[0].float() >= THRESHOLD
        scores[name] = 100 * (found & masks).sum().item() / max(1, (found | masks).sum().item())
    return scores


def training_rows(bench: Bench, sizes: list[int], repeats: int, deadline: float) -> Iterator[dict]:
    """Samples a second and memory of each way and batch size; a size that does not fit ends its way.

    No row is begun after `deadline`, as time.monotonic() counts.
    """
    for way in TRAINING:
        for size in dict.fromkeys((sizes[0], sizes[-1])) if way.compiled else sizes:
            row = {"way": way.name, "batch": size, "samples_per_s": None, "gb": None}
            full = False
            try:
                if time.monotonic() > deadline:
                    raise TimeoutError("time was up")
                free(bench)
                step, warm = bench.step(way, size), 1 if bench.tiny else 3
                row["samples_per_s"] = size / seconds({"": step}, repeats, warm)[""]
                if bench.device.type == "cuda":
                    row["gb"] = torch.cuda.max_memory_allocated() / 1e9
            except Exception as error:  # a compiler raises many kinds; the other rows are still measured
                row["why"], full = one_line(error, 80), isinstance(error, torch.OutOfMemoryError)
            yield row
            if full:
                break


def measure(args, keep: Callable[[dict], None]) -> None:
    """All rows as plain numbers. `keep` gets them after each row, so that one that fails or hangs costs only itself."""
    deadline = time.monotonic() + 60 * args.minutes
    bench = Bench(torch.device(args.device), args.tiny)
    values = {"where": where(args.device), "tiny": args.tiny, "failed": {}, "training": []}
    values["flops_a_sample"] = 3.0 * sum(count_flops(bench.config).values())  # forward and backward; none twice
    sections = {
        "matmul_tflops": lambda: matmul_rate(bench, args.repeats),
        "evaluation": lambda: bench.evaluation(args.images, PRECISIONS, args.repeats, warm=1 if args.tiny else 3),
        "oiou": lambda: metric_change(bench),
    }
    for name, section in sections.items():
        try:
            free(bench)
            values[name] = section()
        except Exception as error:
            values["failed"][name] = one_line(error, 200)
        keep(values)
    for row in training_rows(bench, [int(size) for size in args.batches.split(",")], args.repeats, deadline):
        values["training"].append(row)
        keep(values)
        print(row, file=sys.stderr, flush=True)


def best(rows: list[dict]) -> float | None:
    """The highest rate among rows, None if none was measured."""
    return max((row["samples_per_s"] for row in rows if row["samples_per_s"]), default=None)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None if one of them was not measured."""
    return a / b if a and b else None


def memory_rows(rows: list[dict]) -> list[tuple]:
    """GB that one more sample takes each way, from the smallest and the largest batch that fit."""
    slopes = {}
    for way in TRAINING:
        fits = [(row["batch"], row["gb"]) for row in rows if row["way"] == way.name and row["gb"]]
        if len(fits) > 1:
            (small, least), *_, (large, most) = fits
            slopes[way.name] = (most - least) / (large - small)
    return [(name, slope, ratio(slope, slopes.get(AUTHORS.name))) for name, slope in slopes.items()]


def markdown(values: dict) -> str:
    """The tables of `measure`'s values, which may lack sections."""
    rows, product, flops = values["training"], values.get("matmul_tflops"), values["flops_a_sample"] / 1e12
    authors = [row for row in rows if row["way"] == AUTHORS.name]
    ours = [row for row in rows if row["way"] != AUTHORS.name]
    eights, hours = [row for row in ours if row["batch"] == 8], 3.2e6 / 3600  # at one sample a second
    numbers = [
        ("a large bfloat16 product, TFLOP/s", product),
        ("a sample in training, forward and backward, TFLOP", flops),
        (
            "hours of the schedule's 400,000 steps of 8 samples",
            ratio(hours, best(eights)),
        ),
        ("hours of its 3.2 million samples at the best rate of any batch size", ratio(hours, best(ours))),
        *((f"oIoU of a model trained for a moment, {name}, %", oiou) for name, oiou in values.get("oiou", {}).items()),
        *((f"{name} failed", why) for name, why in values["failed"].items()),
    ]
    training = []
    for row in rows:
        rate = row["samples_per_s"]
        shares = ratio(rate, best(authors)), rate and rate * flops, ratio(rate and rate * flops, product)
        training.append((row["way"], row["batch"], rate or f"{NOT_MEASURED}: {row['why']}", *shares, row["gb"]))
    columns = ("way", "per_s", "ratio", "pixels_differ", "logits_differ")
    evaluation = [[row.get(column) for column in columns] for row in values.get("evaluation", [])]
    return f"""{values["where"]}{" (toy size: these figures mean nothing)" if values["tiny"] else ""}

{table(("what", "value"), numbers)}

## Training, whole steps from a batch in pinned memory

{table(("way", "batch", "samples/s", "x the authors' best", "TFLOP/s", "share of the product's rate", "GB"), training)}

## Memory of one more sample

{table(("way", "GB a sample", "of the authors'"), memory_rows(rows))}

## Evaluation, {EXPRESSIONS} expressions an image, the networks alone

{table(("way", "expressions/s", "x", "share of pixels that differ", "largest difference of logits"), evaluation)}
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="toy model, which shows that the script runs")
    parser.add_argument("--batches", default="8,16,32,64", help="batch sizes of training, samples, from small to large")
    parser.add_argument("--images", type=int, default=8, help="images that evaluation encodes at a time")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each row; the median counts")
    parser.add_argument("--minutes", type=float, default=6.5, help="minutes after which no training row is begun")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="path of OUT.md and OUT.json")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: no GPU is available; --device cpu --tiny shows that the script runs")

    def keep(values: dict) -> None:
        write_json(args.out.with_suffix(".json"), values)
        with atomic_write(args.out.with_suffix(".md")) as file:
            file.write(markdown(values).encode())

    measure(args, keep)
    print(args.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    run_main(main)
