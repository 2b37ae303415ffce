"""The rows of benchmarks/gpu.py: what is timed, on which device, and how."""

import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.bench_model import ReferenceWay
from models.config import LanguageConfig, ReSTRConfig, VisionConfig
from models.inference import THRESHOLD
from models.loss import LossConfig, restr_loss
from models.reference import reference_config, to_reference
from models.restr import build_restr
from models.vision import vision_config
from tools.model_size import count_flops
from train.loop import Trainer
from train.options import Recipe
from utils.device import Ranks, autocast
from utils.errors import one_line
from utils.text import TEXT_LENGTH

EXPRESSIONS = 7  # of one image; unc val has 7.2
TINY = VisionConfig("vit_tiny_patch16_224", (32, 48), patch_size=16, width=24, depth=1, heads=3, norm_eps=1e-5)
PART = 8  # expressions at a time, as in evaluate.py


@dataclass(frozen=True)
class Way:
    """One way to train; `amp` as in Trainer. Those compiled are timed at two batch sizes: each compiles anew."""

    name: str
    reference: bool = False
    amp: str | None = "bf16"
    compiled: bool = False
    checkpointed: bool = False


REFERENCE = Way("reference's way, fp16", reference=True, amp="fp16")
OURS = (
    Way("ours, fp32", amp=None),
    Way("ours, bf16"),
    Way("ours, bf16, --grad_checkpoint", checkpointed=True),
    Way("ours, bf16, --compile", compiled=True),
    Way("ours, bf16, --compile --grad_checkpoint", compiled=True, checkpointed=True),
)


class Bench:
    """Models, inputs and clocks of one device; `deadline` is when no further row is begun. float32 is never TF32."""

    def __init__(self, device: torch.device, tiny: bool, repeats: int, seconds: float):
        self.device, self.tiny, self.repeats = device, tiny, repeats
        torch.backends.cudnn.allow_tf32 = False
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
        """Images uint8, word ids and masks of `size` samples, on the CPU."""
        torch.manual_seed(1)
        shape = self.model.image_size
        images = torch.randint(0, 256, (size, 3, *shape), dtype=torch.uint8)
        ids = torch.randint(1, self.model.config.language.vocabulary_size, (size, TEXT_LENGTH))
        ids[:, : TEXT_LENGTH // 2] = 0
        return images, ids, torch.rand(size, 1, *shape) < 0.2

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
        trainer = Trainer(
            model,
            optimizer,
            lambda *batch: restr_loss(*batch, LossConfig()),
            Recipe(batch_size=size),
            Ranks(self.device),
            way.amp,
        )
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

    def gigabytes(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None


def free(bench: Bench) -> None:
    """Give back what the last row held, and start its memory count anew."""
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
            if bench.late():
                yield row | {"why": "time was up"}
                continue
            free(bench)
            try:
                rate = size / bench.seconds(bench.trainer(way, size))
            except Exception as error:  # a compiler raises many kinds; the other rows are to come all the same
                yield row | {"why": one_line(error, 80)}
                if isinstance(error, torch.OutOfMemoryError):
                    break
                continue
            tflops = rate * flops / 1e12
            yield row | {"samples_per_s": rate, "gb": bench.gigabytes(), "tflops": tflops, "share": tflops / peak}


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
    """Expressions a second of the networks alone: the reference's way one at a time, ours `images` images at a time."""
    free(bench)
    reference, model = bench.reference()[0], copy.deepcopy(bench.model).to(bench.device).eval()
    pictures = bench.inputs(images)[0].to(bench.device)
    ids = bench.inputs(images * EXPRESSIONS)[1].to(bench.device)
    owner = torch.arange(images, device=bench.device).repeat_interleave(EXPRESSIONS)

    def one_by_one(count: int) -> Tensor:
        image = model.normalise(pictures)
        return torch.cat([reference(image[owner[i]][None], ids[i : i + 1])[0] for i in range(count)])

    def batched(amp: str | None) -> Tensor:
        with autocast(bench.device, amp):
            v, l = model.encode_image(model.normalise(pictures)), model.encode_text(ids)
            parts = zip(owner.split(PART), l.split(PART), ids.split(PART), strict=True)
            return torch.cat([model.segment_features(v[o], l_, i)[0] for o, l_, i in parts]).float()

    plain, rate = one_by_one(len(ids)), 1 / bench.seconds(lambda: one_by_one(1))
    rows = [{"way": "reference's way, fp32, one at a time", "per_s": rate, "ratio": 1.0}]
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
    for i in range(8):  # a bright rectangle, elsewhere in each image: cannot be learnt to the last pixel
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
