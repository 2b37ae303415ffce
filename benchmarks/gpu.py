"""Every GPU figure of this repository in one command of under ten minutes; needs no data and no pre-trained weights.

    python benchmarks/gpu.py --out gpu_results                   # on a machine with a GPU
    python benchmarks/gpu.py --device cpu --tiny --out toy       # only shows that the script runs

The authors' way (benchmarks/plain_restr.py: softmax attention, upsample-then-project decoder) trains under float16
autocast with a gradient scaler, which is its `--amp`, and evaluates one expression at a time in float32. Ours trains
under bfloat16 autocast with fused AdamW, with and without torch.compile. Writes OUT.md and OUT.json after each row.
"""

import copy
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks.bench_model import seconds
from benchmarks.plain_restr import PlainReSTR
from benchmarks.report import table, where
from models.config import LanguageConfig, ReSTRConfig, VisionConfig
from models.inference import THRESHOLD
from models.loss import LossConfig, restr_loss
from models.reference import reference_config, to_reference
from models.restr import build_restr
from models.vision import vision_config
from tools.model_size import count_flops
from train.loop import Trainer
from train.options import Recipe
from utils.cli import ArgumentParser, run_main
from utils.device import Ranks, autocast
from utils.errors import InputError, one_line
from utils.files.writing import atomic_write, write_json
from utils.text import TEXT_LENGTH

NOT_MEASURED = "not measured"
EXPRESSIONS = 7  # of one image; unc val has 7.2
TINY = VisionConfig("vit_tiny_patch16_224", (32, 48), patch_size=16, width=24, depth=1, heads=3, norm_eps=1e-5)
TINY_REFERENCE = {  # the same in the authors' words; its weights do not tell the numbers of heads
    "v_backbone": {"image_size": [32, 48], "patch_size": 16, "n_heads": 3, "n_layers": 1},
    "l_backbone": {"n_layers": 1, "n_heads": 3},
    "mm_fusion": {"n_layers": 2, "n_heads": 3, "is_shared": False, "is_decoder": True},
}
PART = 8  # expressions at a time, as in evaluate.py


@dataclass(frozen=True)
class Way:
    """One way to train; `amp` as in Trainer. Compiled ones are timed at two batch sizes: each compiles again."""

    name: str
    reference: bool = False
    amp: str | None = "bf16"
    compiled: bool = False
    checkpointed: bool = False


REFERENCE = Way("authors' way, fp16", reference=True, amp="fp16")
OURS = (
    Way("ours, fp32", amp=None),
    Way("ours, bf16"),
    Way("ours, bf16, --grad_checkpoint", checkpointed=True),
    Way("ours, bf16, --compile", compiled=True),
    Way("ours, bf16, --compile --grad_checkpoint", compiled=True, checkpointed=True),
)


class Bench:
    """Models, inputs and clocks of one device; after `deadline` no row is begun. float32 is never TF32."""

    def __init__(self, device: torch.device, tiny: bool, repeats: int, seconds: float):
        self.device, self.tiny, self.repeats = device, tiny, repeats
        torch.backends.cudnn.allow_tf32 = False
        self.deadline = time.monotonic() + seconds
        vision = TINY if tiny else vision_config("vit_base_patch16_384", (480, 480))
        language = LanguageConfig(50, width=24, depth=1, heads=3) if tiny else LanguageConfig()
        torch.manual_seed(0)
        self.model = build_restr(ReSTRConfig(vision, language))

    def seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of one call."""
        return seconds({"": work}, self.repeats, self.device, warm=1 if self.tiny else 3)[""]

    def inputs(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8, word ids and masks of `size` samples, on the CPU."""
        torch.manual_seed(1)
        shape = self.model.image_size
        images = torch.randint(0, 256, (size, 3, *shape), dtype=torch.uint8)
        ids = torch.randint(1, self.model.config.language.vocabulary_size, (size, TEXT_LENGTH))
        ids[:, : TEXT_LENGTH // 2] = 0
        return images, ids, torch.rand(size, 1, *shape) < 0.2

    def reference(self) -> tuple[PlainReSTR, list[Tensor]]:
        """The plain model, with the weights of ours, and its parameters."""
        state = {k: v.detach().clone().to(self.device).requires_grad_() for k, v in to_reference(self.model).items()}
        return PlainReSTR(state, TINY_REFERENCE if self.tiny else reference_config(state)), [*state.values()]

    def trainer(self, way: Way, size: int) -> Callable[[], float]:
        """A function that makes a whole training step of `size` samples in the CPU's memory and returns the loss."""
        images, ids, masks = (x.pin_memory() if self.device.type == "cuda" else x for x in self.inputs(size))
        if way.reference:
            return self._reference_step(way, images, ids, masks)
        model = copy.deepcopy(self.model).to(self.device).train()
        model.set_grad_checkpointing(way.checkpointed)
        if way.compiled:
            model.compile(backend="eager" if self.tiny else "inductor")
        optimizer = torch.optim.AdamW(model.parameter_groups(1e-5, 0.1), fused=True)
        recipe, ranks = Recipe(batch_size=size), Ranks(self.device)
        trainer = Trainer(model, optimizer, lambda *x: restr_loss(*x, LossConfig()), recipe, ranks, way.amp)
        batch = {"image": images, "ids": ids, "mask": masks, "name": [""] * size}
        return lambda: trainer.train_step([batch])["loss"]

    def _reference_step(self, way: Way, images: Tensor, ids: Tensor, masks: Tensor) -> Callable[[], float]:
        model, parameters = self.reference()
        optimizer = torch.optim.AdamW(parameters, lr=1e-5)
        scaler = torch.amp.GradScaler(self.device.type, enabled=way.amp == "fp16")
        images = images / 127.5 - 1  # its loader normalises
        images = images.pin_memory() if self.device.type == "cuda" else images

        def step() -> float:
            image, words, mask = (x.to(self.device, non_blocking=True) for x in (images, ids, masks))
            with autocast(self.device, way.amp):
                outputs = model(image, words)
            loss = restr_loss(*outputs, mask, LossConfig())["loss"]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step


def free(bench: Bench) -> None:
    """Free what the last row held, and reset the memory count."""
    torch.compiler.reset()
    gc.collect()  # a compiled model refers to itself
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matmul_rate(bench: Bench) -> float:
    """TFLOP/s of a large bfloat16 product."""
    n = 64 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    return 2 * n**3 / bench.seconds(lambda: a @ a) / 1e12


def flops_a_sample(bench: Bench) -> float:
    """Operations of forward and backward of one sample as ours computes them; recomputation is not counted."""
    return 3.0 * sum(count_flops(bench.model.config).values())


def training_rows(bench: Bench, sizes: list[int], peak: float, flops: float) -> Iterator[dict]:
    """Samples a second and memory of each way and batch size; a size that does not fit ends its way."""
    for way in (REFERENCE, *OURS):
        for size in dict.fromkeys((sizes[0], sizes[-1])) if way.compiled else sizes:
            row = {"way": way.name, "batch": size, "samples_per_s": None, "gb": None}
            if time.monotonic() > bench.deadline:
                yield row | {"why": "time was up"}
                continue
            free(bench)
            try:
                rate = size / bench.seconds(bench.trainer(way, size))
            except Exception as error:  # a compiler raises many kinds; the other rows are still measured
                yield row | {"why": one_line(error, 80)}
                if isinstance(error, torch.OutOfMemoryError):
                    break
                continue
            tflops = rate * flops / 1e12
            gb = torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else None
            yield row | {"samples_per_s": rate, "gb": gb, "tflops": tflops, "share": tflops / peak}


def memory_slopes(rows: list[dict]) -> dict[str, float]:
    """GB that one more sample takes, from the smallest and the largest batch that fit, by way."""
    slopes = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        fits = [row for row in rows if row["way"] == way and row["gb"] is not None]
        if len(fits) > 1:
            slopes[way] = (fits[-1]["gb"] - fits[0]["gb"]) / (fits[-1]["batch"] - fits[0]["batch"])
    return slopes


@torch.inference_mode()
def evaluation_rows(bench: Bench, images: int) -> list[dict]:
    """Expressions a second of the networks alone: the authors' way one at a time, ours `images` images at a time."""
    free(bench)
    reference, model = bench.reference()[0], copy.deepcopy(bench.model).to(bench.device).eval()
    pixels = bench.inputs(images)[0].to(bench.device)
    ids = bench.inputs(images * EXPRESSIONS)[1].to(bench.device)
    owner = torch.arange(images, device=bench.device).repeat_interleave(EXPRESSIONS)

    def one_by_one(count: int) -> Tensor:
        image = model.normalise(pixels)
        return torch.cat([reference(image[owner[i]][None], ids[i : i + 1])[0] for i in range(count)])

    def batched(amp: str | None) -> Tensor:
        with autocast(bench.device, amp):
            v, l = model.encode_image(model.normalise(pixels)), model.encode_text(ids)
            parts = zip(owner.split(PART), l.split(PART), ids.split(PART), strict=True)
            return torch.cat([model.segment_features(v[o], l_, i)[0] for o, l_, i in parts]).float()

    plain, rate = one_by_one(len(ids)), 1 / bench.seconds(lambda: one_by_one(1))
    rows = [{"way": "authors' way, fp32, one at a time", "per_s": rate, "ratio": 1.0}]
    for name, amp in (("fp32", None), ("bf16", "bf16")):
        logits, ours = batched(amp), len(ids) / bench.seconds(lambda amp=amp: batched(amp))
        differ = ((logits >= THRESHOLD) != (plain >= THRESHOLD)).float().mean().item()
        rows.append({"way": f"ours, {name}, {images} images at a time", "per_s": ours, "ratio": ours / rate})
        rows[-1] |= {"pixels_differ": differ, "logits_differ": (logits - plain).abs().max().item()}
    return rows


def metric_change(bench: Bench) -> dict[str, float]:
    """oIoU, percent, of float32 and of bfloat16 predictions of a model trained for a moment, on its own samples."""
    free(bench)
    model = copy.deepcopy(bench.model).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if bench.tiny else 1e-4)
    images, ids, _ = (x.to(bench.device) for x in bench.inputs(8))
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
    for name, amp in (("fp32", None), ("bf16", "bf16")):
        with torch.inference_mode(), autocast(bench.device, amp):
            found = model.eval()(images, ids)[0].float() >= THRESHOLD
        scores[name] = 100 * (found & masks).sum().item() / max(1, (found | masks).sum().item())
    return scores


def measure(args, keep: Callable[[dict], None]) -> None:
    """All rows as plain numbers; `keep` gets them after each row, so that one that never ends costs only itself."""
    sizes = [int(size) for size in args.batches.split(",")]
    bench = Bench(torch.device(args.device), args.tiny, args.repeats, 60 * args.minutes)
    values = {"where": where(args.device), "tiny": args.tiny, "training": [], "gb_a_sample": {}}
    values["matmul_tflops"] = matmul_rate(bench)
    values["flops_a_sample"] = flops_a_sample(bench)
    values["evaluation"] = evaluation_rows(bench, args.images)
    values["oiou"] = metric_change(bench)
    keep(values)
    for row in training_rows(bench, sizes, values["matmul_tflops"], values["flops_a_sample"]):
        values["training"].append(row)
        values["gb_a_sample"] = memory_slopes(values["training"])
        keep(values)
        print(row, file=sys.stderr, flush=True)


def markdown(values: dict) -> str:
    """The tables of `measure`'s values."""
    reference = best(values["training"], REFERENCE.name)
    training = [_training_row(row, reference) for row in values["training"]]
    slopes = values["gb_a_sample"]
    base = slopes.get(REFERENCE.name)
    memory = [(way, slope, slope / base if base else NOT_MEASURED) for way, slope in slopes.items()]
    columns = ("way", "per_s", "ratio", "pixels_differ", "logits_differ")
    evaluation = [[row.get(column, NOT_MEASURED) for column in columns] for row in values["evaluation"]]
    oiou = values["oiou"]
    return f"""{values["where"]}{" (toy size: these figures mean nothing)" if values["tiny"] else ""}

A large bfloat16 product: {values["matmul_tflops"]:.3g} TFLOP/s. A sample in training, forward and backward:
{values["flops_a_sample"] / 1e12:.3g} TFLOP. The 400,000 steps of 8 samples of the schedule:
{_hours(values["training"], 8)}; its 3.2 million samples at the best rate of any batch size:
{_hours(values["training"], None)}.

## Training, whole steps from a batch in pinned memory

{table(("way", "batch", "samples/s", "x the authors' best", "TFLOP/s", "share of the product's rate", "GB"), training)}

## Memory of one more sample

{table(("way", "GB a sample", "of the authors'"), memory or [(NOT_MEASURED,) * 3])}

## Evaluation, {EXPRESSIONS} expressions an image, the networks alone

{table(("way", "expressions/s", "x", "share of pixels that differ", "largest difference of logits"), evaluation)}

oIoU of a model trained for a moment, in float32 and bfloat16: {oiou["fp32"]:.3f}, {oiou["bf16"]:.3f}.
"""


def _hours(rows: list[dict], batch: int | None) -> str:
    rate = max(best([row for row in rows if batch in (None, row["batch"])], way.name) for way in OURS)
    return f"{3.2e6 / rate / 3600:.2f} h" if rate else NOT_MEASURED


def best(rows: list[dict], way: str) -> float:
    """The highest rate of a way over its batch sizes; 0.0 if none was measured."""
    return max((row["samples_per_s"] or 0.0 for row in rows if row["way"] == way), default=0.0)


def _training_row(row: dict, reference: float) -> tuple:
    if row["samples_per_s"] is None:
        return row["way"], row["batch"], f"{NOT_MEASURED}: {row['why']}", *(NOT_MEASURED,) * 4
    times = row["samples_per_s"] / reference if reference else NOT_MEASURED
    memory = NOT_MEASURED if row["gb"] is None else row["gb"]
    return row["way"], row["batch"], row["samples_per_s"], times, row["tflops"], row["share"], memory


def parse():
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
    return args


def main() -> None:
    args = parse()

    def keep(values: dict) -> None:
        write_json(args.out.with_suffix(".json"), values)
        with atomic_write(args.out.with_suffix(".md")) as file:
            file.write(markdown(values).encode())

    measure(args, keep)
    print(args.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    run_main(main)
