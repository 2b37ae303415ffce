"""The rows of benchmarks/gpu.py: what is timed, on which device, and how."""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.bench_model import ReferenceWay
from models.config import LanguageConfig, ReSTRConfig, VisionConfig
from models.loss import LossConfig, restr_loss
from models.reference import reference_config, to_reference
from models.restr import build_restr
from models.summary import count_flops
from models.vision import vision_config
from utils.text import TEXT_LENGTH

EXPRESSIONS = 7  # of one image; unc val has 7.2
TINY = VisionConfig("vit_tiny_patch16_224", (32, 48), patch_size=16, width=24, depth=1, heads=3, norm_eps=1e-5)
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Way:
    """One way to train."""

    name: str
    reference: bool = False
    dtype: str = "bf16"
    compiled: bool = False
    checkpointed: bool = False


REFERENCE = Way("reference's way, fp16", reference=True, dtype="fp16")
OURS = (
    Way("ours, fp32", dtype="fp32"),
    Way("ours, bf16"),
    Way("ours, bf16, --compile", compiled=True),
    Way("ours, bf16, --grad_checkpoint", checkpointed=True),
    Way("ours, bf16, --compile --grad_checkpoint", compiled=True, checkpointed=True),
)


class Bench:
    """Models, inputs and clocks of one device; `deadline` is when no further row is begun."""

    def __init__(self, device: torch.device, tiny: bool, repeats: int, seconds: float):
        self.device, self.tiny, self.repeats = device, tiny, repeats
        self.deadline = time.monotonic() + seconds
        vision = TINY if tiny else vision_config("vit_base_patch16_384", (480, 480))
        language = LanguageConfig(50, width=24, depth=1, heads=3) if tiny else LanguageConfig()
        torch.manual_seed(0)
        self.model = build_restr(ReSTRConfig(vision, language))

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], warm: int = 3) -> float:
        """Median seconds of one call."""
        for _ in range(1 if self.tiny else warm):
            work()
        times = []
        for _ in range(self.repeats):
            self.sync()
            start = time.perf_counter()
            work()
            self.sync()
            times.append(time.perf_counter() - start)
        return median(times)

    def inputs(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8, word ids and masks of `size` samples."""
        torch.manual_seed(1)
        shape = self.model.image_size
        images = torch.randint(0, 256, (size, 3, *shape), dtype=torch.uint8)
        ids = torch.randint(1, self.model.config.language.vocabulary_size, (size, TEXT_LENGTH))
        ids[:, : TEXT_LENGTH // 2] = 0
        return images.to(self.device), ids.to(self.device), (torch.rand(size, 1, *shape) < 0.2).to(self.device)

    def reference(self) -> tuple[ReferenceWay, list[Tensor]]:
        """The plain model, with the weights of ours, and its parameters."""
        state = {k: v.detach().clone().to(self.device).requires_grad_() for k, v in to_reference(self.model).items()}
        return ReferenceWay(state, reference_config(state) if not self.tiny else self._tiny_reference()), [
            *state.values()
        ]

    def _tiny_reference(self) -> dict:
        """The reference's words for the toy model, whose head counts its weights do not tell."""
        vision = self.model.vision
        return {
            "v_backbone": {
                "image_size": list(self.model.image_size),
                "patch_size": vision.patch_size,
                "n_heads": vision.heads,
                "n_layers": len(vision.backbone.blocks),
            },
            "l_backbone": {"n_layers": 1, "n_heads": 3},
            "mm_fusion": {"n_layers": 2, "n_heads": vision.heads, "is_shared": False, "is_decoder": True},
        }

    def trainer(self, way: Way) -> Callable[[tuple], Tensor]:
        """A function that makes one whole training step of a batch and returns the loss."""
        if way.reference:
            model, parameters = self.reference()
            optimizer = torch.optim.AdamW(parameters, lr=1e-5)
        else:
            model = copy.deepcopy(self.model).to(self.device).train()
            model.set_grad_checkpointing(way.checkpointed)
            if way.compiled:
                model.compile(backend="eager" if self.tiny else "inductor")
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        dtype, device = DTYPES[way.dtype], self.device.type
        scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

        def step(batch: tuple) -> Tensor:
            images, ids, masks = batch
            if way.reference:
                images = images / 127.5 - 1
            with torch.autocast(device, dtype, enabled=dtype is not None):
                outputs = model(images, ids)
            loss = restr_loss(*outputs, masks, LossConfig())["loss"]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    def gigabytes(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None


def free(bench: Bench) -> None:
    """Give back what the last row held, and start its memory count anew."""
    torch.compiler.reset()
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


def training_rows(bench: Bench, sizes: list[int], peak: float, flops: float) -> list[dict]:
    """Samples a second and memory of each way and batch size; a size that does not fit ends its way."""
    rows = []
    for way in (REFERENCE, *OURS):
        for size in sizes:
            row = {"way": way.name, "batch": size, "samples_per_s": None, "gb": None}
            rows.append(row)
            if bench.late():
                row["why"] = "time was up"
                continue
            free(bench)
            try:
                step, batch = bench.trainer(way), bench.inputs(size)
                rate = size / bench.seconds(lambda step=step, batch=batch: step(batch))
            except torch.cuda.OutOfMemoryError:
                row["why"] = "out of memory"
                break
            finally:
                step = batch = None
            tflops = rate * flops / 1e12
            row |= {"samples_per_s": rate, "gb": bench.gigabytes(), "tflops": tflops, "share": tflops / peak}
            print(f"{way.name}, batch {size}: {rate:.1f} samples/s", file=sys.stderr, flush=True)
    return rows


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
    """Expressions a second: the reference's way one at a time, and ours with `images` encoded at a time."""
    free(bench)
    reference, model = bench.reference()[0], copy.deepcopy(bench.model).to(bench.device).eval()
    pictures, _, _ = bench.inputs(images)
    ids = bench.inputs(images * EXPRESSIONS)[1]
    owner = torch.arange(images, device=bench.device).repeat_interleave(EXPRESSIONS)

    def batched(dtype) -> Tensor:
        with torch.autocast(bench.device.type, dtype, enabled=dtype is not None):
            v, l = model.encode_image(model.normalise(pictures)), model.encode_text(ids)
            parts = [model.segment_features(v[o], l_, i)[0] for o, l_, i in _parts(owner, l, ids)]
        return torch.cat(parts).float()

    single = model.normalise(pictures[:1])
    one = {
        "way": "reference's way, fp32, one at a time",
        "per_s": 1 / bench.seconds(lambda: reference(single, ids[:1])),
    }
    rows = [one]
    plain = batched(None)
    for name in ("fp32", "bf16"):
        logits = batched(DTYPES[name])
        differ = ((logits >= 1e-9) != (plain >= 1e-9)).float().mean().item()
        rate = len(ids) / bench.seconds(lambda name=name: batched(DTYPES[name]))
        rows.append({"way": f"ours, {name}, {images} images at a time", "per_s": rate, "pixels_differ": differ})
    rows[1]["logits_differ"] = (plain[:1] - reference(single, ids[:1])[0]).abs().max().item()
    return [{**row, "ratio": row["per_s"] / one["per_s"]} for row in rows]


def _parts(*tensors: Tensor):
    return zip(*(tensor.split(32) for tensor in tensors), strict=True)


def metric_change(bench: Bench) -> float:
    """Points of oIoU between bfloat16 and float32 predictions of a model trained for a moment, on its own samples."""
    free(bench)
    model = copy.deepcopy(bench.model).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, ids, _ = bench.inputs(8)
    masks = images.float().mean(1, keepdim=True)
    masks[..., : masks.shape[-1] // 2] += 300  # the left half is the object: quickly learnt
    masks = masks > 255
    for _ in range(3 if bench.tiny else 30):
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            outputs = model(images, ids)
        restr_loss(*outputs, masks, LossConfig())["loss"].backward()
        optimizer.step()
    scores = []
    for dtype in (None, torch.bfloat16):
        with torch.inference_mode(), torch.autocast(bench.device.type, dtype, enabled=dtype is not None):
            predicted = model.eval()(images, ids)[0].float() >= 1e-9
        scores.append(100 * (predicted & masks).sum().item() / max(1, (predicted | masks).sum().item()))
    return abs(scores[0] - scores[1])
