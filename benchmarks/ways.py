"""The authors' way and ours at work on one device: networks, training steps, evaluation. The same weights each time.

The authors' way is benchmarks/plain_restr.py: attention with an explicit softmax, a decoder that upsamples before it
projects, one expression at a time. Ours is the code that train_restr.py and eval/evaluate.py run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.plain_restr import PlainReSTR
from benchmarks.report import seconds
from models.config import LanguageConfig, ReSTRConfig, VisionConfig
from models.inference import THRESHOLD
from models.loss import LossConfig, restr_loss
from models.reference import reference_config, to_reference
from models.restr import ReSTR, build_restr
from train.loop import Trainer
from train.options import Recipe
from utils.device import Ranks, autocast
from utils.text import TEXT_LENGTH

TINY = ReSTRConfig(
    VisionConfig("vit_tiny_patch16_224", (32, 48), width=24, depth=1), LanguageConfig(50, width=24, depth=1)
)
EXPRESSIONS = 7  # of one image; unc val has 7.2
PART = 8  # expressions at a time, as in evaluate.py


@dataclass(frozen=True)
class Way:
    """One way to compute; `amp` as in Trainer, `compiled` a mode of torch.compile."""

    name: str
    reference: bool = False
    amp: str | None = None
    compiled: str | None = None
    checkpointed: bool = False


AUTHORS, OURS = Way("authors' way", reference=True), Way("ours")


class Bench:
    """Networks and inputs of one device; tiny: a toy model. float32 is never TF32."""

    def __init__(self, device: torch.device, tiny: bool = False):
        self.device, self.tiny = device, tiny
        self.config = TINY if tiny else ReSTRConfig()
        torch.backends.cudnn.allow_tf32 = False

    def network(self, way: Way) -> ReSTR | PlainReSTR:
        """The model in eval mode, on the device."""
        torch.manual_seed(0)
        model = build_restr(self.config).eval().to(self.device)  # drawn on the CPU: the same weights on each device
        if way.reference:
            state = {name: x.detach().clone().requires_grad_() for name, x in to_reference(model).items()}
            config = reference_config(state, model.image_size)
            config["v_backbone"]["n_layers"] = self.config.vision.depth
            config["l_backbone"]["n_layers"] = self.config.language.depth
            return PlainReSTR(state, config)
        model.set_grad_checkpointing(way.checkpointed)
        return model

    def inputs(self, way: Way, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images as the way's loader gives them, word ids and masks of `size` samples, on the CPU."""
        torch.manual_seed(1)
        shape = self.config.vision.image_size
        images = torch.randint(0, 256, (size, 3, *shape), dtype=torch.uint8)
        ids = torch.randint(1, self.config.language.vocabulary_size, (size, TEXT_LENGTH))
        ids[:, : TEXT_LENGTH // 2] = 0
        masks = torch.rand(size, 1, *shape) < 0.2
        return images / 127.5 - 1 if way.reference else images, ids, masks

    def step(self, way: Way, size: int, late: int = 0) -> Callable[[], float]:
        """A function that makes a whole training step of `size` samples in the CPU's memory and returns the loss.

        Of ours with `late` 1 it waits for the step before only, as train_restr.py does, and returns that one's loss.
        """
        images, ids, masks = (x.pin_memory() if self.device.type == "cuda" else x for x in self.inputs(way, size))
        model = self.network(way)
        if way.reference:
            return self._authors_step(model, way.amp, (images, ids, masks))
        if way.compiled:
            model.compile(**({"backend": "eager"} if self.tiny else {"mode": way.compiled}))
        optimizer = torch.optim.AdamW(model.train().parameter_groups(1e-5, 0.1), fused=True)
        recipe, ranks = Recipe(batch_size=size), Ranks(self.device)
        trainer = Trainer(model, optimizer, lambda *x: restr_loss(*x, LossConfig()), recipe, ranks, way.amp)
        batch = {"image": images, "ids": ids, "mask": masks, "name": [""] * size}

        def step() -> float:
            trainer.launch([batch])
            return trainer.settle(late).get("loss", math.nan)

        return step

    def _authors_step(self, model: PlainReSTR, amp: str | None, batch: tuple) -> Callable[[], float]:
        optimizer = torch.optim.AdamW(model.state.values(), lr=1e-5)
        scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")

        def step() -> float:
            image, words, mask = (x.to(self.device, non_blocking=True) for x in batch)
            with autocast(self.device, amp):
                outputs = model(image, words)
            loss = restr_loss(*outputs, mask, LossConfig())["loss"]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step

    @torch.inference_mode()
    def evaluation(self, images: int, amps: dict[str, str | None], repeats: int, warm: int = 1) -> list[dict]:
        """Expressions a second of the networks alone: the authors' way, then ours, `images` at a time, in each of amps.

        Rows of ours say how far its logits, and the pixels that reach the threshold, are from the authors'.
        """
        reference, model = self.network(AUTHORS), self.network(OURS)
        pixels = self.inputs(OURS, images)[0].to(self.device)
        ids = self.inputs(OURS, images * EXPRESSIONS)[1].to(self.device)
        owner = torch.arange(images).repeat_interleave(EXPRESSIONS).to(self.device)

        def one_by_one(count: int) -> Tensor:
            image = model.normalise(pixels)
            return torch.cat([reference(image[i // EXPRESSIONS][None], ids[i : i + 1])[0] for i in range(count)])

        def batched(amp: str | None) -> Tensor:
            with autocast(self.device, amp):
                v, l = model.encode_image(model.normalise(pixels)), model.encode_text(ids)
                parts = zip(owner.split(PART), l.split(PART), ids.split(PART), strict=True)
                return torch.cat([model.segment_features(v[o], l_, i)[0] for o, l_, i in parts]).float()

        plain = one_by_one(len(ids))
        works = {name: lambda amp=amp: batched(amp) for name, amp in amps.items()}
        times = seconds({"": lambda: one_by_one(1), **works}, repeats, warm)
        rows = [{"way": "authors' way, fp32, one at a time", "per_s": 1 / times[""], "ratio": 1.0}]
        for name, work in works.items():
            logits, rate = work(), len(ids) / times[name]
            differ = ((logits >= THRESHOLD) != (plain >= THRESHOLD)).float().mean().item()
            row = {"way": f"ours, {name}, {images} images at a time", "per_s": rate, "ratio": rate * times[""]}
            rows.append(row | {"pixels_differ": differ, "logits_differ": (logits - plain).abs().max().item()})
        return rows
