"""What is timed: the machine's rates, the profile of a step, training, evaluation, loading."""

import importlib.util
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import train_restr
from benchmarks.checks.common import (
    Check,
    Row,
    at_least,
    at_most,
    divided,
    free,
    holds,
    peak_gb,
    relative,
    step_rate,
)
from benchmarks.checks.processes import training_flags
from benchmarks.report import seconds, where
from benchmarks.ways import Way
from tools.model_size import count_flops, step_memory
from train.data import micro_batches
from train.folders import open_folders
from train.options import parse_options
from utils.errors import one_line

SHARED_MEMORY = Path("/dev/shm")
NEEDED = ("timm", "tqdm", "PIL", "numpy", "tensorboard", "safetensors", "huggingface_hub", "triton")
KERNELS = 30  # of the profile that are kept
SAMPLES = 3.2e6  # of the paper's schedule: 400,000 steps of 8
BF16 = Way("ours, bf16", amp="bf16")
AUTHORS = Way("authors' way, fp16", reference=True, amp="fp16")
FP32, LEAN = Way("ours, float32"), Way("ours, bf16, --grad_checkpoint", amp="bf16", checkpointed=True)
TRAINING = ((AUTHORS, 8), (BF16, 8), (BF16, 64), (AUTHORS, 32), (LEAN, 64), (FP32, 8), (FP32, 64))  # by worth
MEMORY = {(BF16, 64): 25, (LEAN, 64): 13}  # GB asked


def machine(check: Check) -> Iterator[Row]:
    """Versions, room, and how fast the device copies and multiplies."""
    yield Row("machine", where(check.device))
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if check.cuda else "no CUDA"
    yield Row("versions", f"{cuda}, timm {importlib.import_module('timm').__version__}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    yield holds("packages are there", not missing, f"missing: {', '.join(missing)}")
    yield Row("CPU cores", len(os.sched_getaffinity(0)))
    if SHARED_MEMORY.is_dir():
        yield Row("/dev/shm, GB", shutil.disk_usage(SHARED_MEMORY).total / 1e9)
    if check.cuda:
        free_bytes, total = torch.cuda.mem_get_info()
        yield Row("memory of the device, GB", total / 1e9)
        yield Row("of that free, GB", free_bytes / 1e9)
    n = check.size(1 << 29, 1 << 16)
    x, y = (torch.rand(n, device=check.device) for _ in range(2))
    rate = 8 * n / seconds({"": lambda: y.copy_(x)}, 10, warm=3)[""] / 1e9
    yield Row("copy on the device, read and written, GB/s", rate)
    host = torch.rand(n // 8, pin_memory=check.cuda)
    rate = host.nbytes / seconds({"": lambda: x[: len(host)].copy_(host, non_blocking=True)}, 5)[""] / 1e9
    yield Row("copy from pinned memory, GB/s", rate)
    for kind in (torch.bfloat16, torch.float32):
        yield Row(f"large product, {str(kind).removeprefix('torch.')}, TFLOP/s", product_rate(check, kind))


def product_rate(check: Check, kind: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of a large product, ten at a time."""
    n = check.size(8192, 64)
    a = torch.randn(n, n, device=check.device, dtype=kind)

    def ten() -> None:
        for _ in range(10):
            a @ a

    return 10 * 2 * n**3 / seconds({"": ten}, 5, warm=2)[""] / 1e12


def profiled(check: Check) -> Iterator[Row]:
    """Share of the time in which the device works in a step of 64, launches, and its longest kernels."""
    step, steps = check.bench().step(BF16, check.size(64, 2), late=1), 3
    for _ in range(3):
        step()
    kind = DeviceType.CUDA if check.cuda else DeviceType.CPU
    with profile(activities=[ProfilerActivity.CUDA if check.cuda else ProfilerActivity.CPU]) as watched:
        for _ in range(steps):
            step()
    events = [e for e in watched.events() if e.device_type == kind and not getattr(e, "is_user_annotation", False)]
    if not events:
        yield Row("profile: no kernel was seen", None)
        return
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    yield at_least("share of the time in which the device works", busy(spans), 0.95)
    yield at_most("kernels and copies of a step", len(events) / steps, 1000)
    times = Counter()
    for event in events:
        times[event.name] += (event.time_range.end - event.time_range.start) / 1e3 / steps
    total = sum(times.values())
    yield Row("all kernels, ms a step", total)
    for name, took in times.most_common(KERNELS):
        yield Row(f"{name[:90].replace('|', '/')}, ms a step ({took / total:.1%})", took)


def busy(spans: list[tuple[float, float]]) -> float:
    """The share of the time from the first start to the last end that the sorted `spans` cover."""
    covered, end = 0.0, spans[0][0]
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / (end - spans[0][0])


def rates(check: Check) -> Iterator[Row]:
    """Samples a second and memory of training, and expressions a second of evaluation."""
    bench, best = check.bench(), {}
    product, flops = product_rate(check), 3.0 * sum(count_flops(bench.config).values()) / 1e12
    yield Row("forward and backward of a sample, TFLOP", flops)
    for way, full in TRAINING:
        size = check.size(full, 2)
        free(check)
        try:
            rate = step_rate(check, bench.step(way, size, late=1), size)
        except Exception as error:  # the other rows are still measured
            yield Row(f"{way.name}, batch {full}, samples/s: {one_line(error, 80)}", None)
            continue
        best[way.name] = max(best.get(way.name, 0), rate)
        asked = at_least if way is BF16 and full == 64 else lambda what, value, _: Row(what, value)
        yield asked(f"{way.name}, batch {full}, samples/s", rate, 500)
        peak = peak_gb(check)
        yield _memory(f"{way.name}, batch {full}, GB", peak, MEMORY.get((way, full)))
        if not way.reference:
            told = step_memory(bench.config, size, way.amp, way.checkpointed) / 1e9
            yield at_most("its distance from what --print_model says", peak and relative(peak, told), 0.05)
        if way is BF16:
            yield Row(f"hours of the paper's schedule at batch {full}", SAMPLES / 3600 / rate)
    ours, theirs = best.get(BF16.name), best.get(AUTHORS.name)
    yield at_least("ours in bf16 / authors' way in fp16", divided(ours, theirs), 3)
    yield at_least("share of the rate of a large product", divided(ours and ours * flops, product), 0.42)
    free(check)
    found = bench.evaluation(check.size(8, 2), {"float32": None, "bf16": "bf16"}, check.size(5, 1), check.size(3, 1))
    for row in found:
        yield Row(f"evaluation, {row['way']}, expressions/s", row["per_s"])
        if "pixels_differ" in row:
            yield at_least("that / authors' way", row["ratio"], 15)
            yield Row("share of pixels that differ", row["pixels_differ"])


def _memory(what: str, value: float | None, asked: float | None) -> Row:
    return at_most(what, value, asked) if asked else Row(what, value)


def loading(check: Check) -> Iterator[Row]:
    """Samples a second of the loader alone, of the step alone, and of both together."""
    size = check.size(64, 4)
    options = parse_options("", training_flags(check, "loading", "--amp", "--batch_size", size, "--num_steps", 10_000))
    split, _, vocabulary = open_folders(options.data)
    options.data.input_size = split.image_size
    ranks, count = check.ranks(), check.size(20, 2)  # batches
    config = options.model.config(options.data.input_size, len(vocabulary))
    model, _ = train_restr.build_model(options, config, split, vocabulary, False)
    trainer = train_restr.build_trainer(options, model.to(ranks.device), ranks)
    trainer.model.train()
    batches = micro_batches(options, split, 0, ranks)
    batch = next(batches)

    def step(batch: dict) -> None:
        trainer.launch([batch])
        trainer.settle(1)

    _each(3, lambda: step(batch))
    alone = size / _each(count, lambda: step(batch))
    yield Row("step alone, samples/s", alone)
    both = size / _each(3 * count, lambda: step(next(batches)))  # more than are decoded ahead
    yield at_least("loader and step / step alone", both / alone, 0.95)
    list(islice(batches, 2 * check.workers))  # decoded ahead
    rate = size / _each(count, lambda: next(batches))
    yield at_least(f"loader alone, {check.workers} processes, samples/s", rate, 600)


def _each(count: int, work: Callable[[], object]) -> float:
    """Seconds of one of `count` calls in a row."""
    started = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - started) / count
