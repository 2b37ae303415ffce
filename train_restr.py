#!/usr/bin/env python
"""Train ReSTR.

    python train_restr.py --data_dir data/mscoco/unc_480_batch --adamW
    python train_restr.py --data_dir data/referit/referit_480_batch --set trainval --valset test --adamW
    torchrun --nproc_per_node 8 train_restr.py --data_dir data/mscoco/unc_480_batch --adamW --amp    # eight GPUs

A signal (Ctrl+C, SIGTERM, SIGUSR1) saves and stops the run; the same command with --resume goes on.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from eval.evaluator import EvalSettings
from eval.validation import Validation
from models import ReSTRConfig, build_restr
from models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from models.config import LANGUAGE_BACKBONES, DecoderConfig, FusionConfig
from models.loss import LossConfig, restr_loss
from models.memory import describe_memory
from models.summary import describe
from models.vision import vision_config
from utils import distributed
from utils.allocator import settle_memory
from utils.batches import BatchSplit, TrainDataset, collate
from utils.distributed import Ranks
from utils.errors import InputError, one_line, run_main
from utils.logs import NoLog, RunLog
from utils.run_folder import RunFolder
from utils.sampler import StepSampler
from utils.schedule import Schedule
from utils.signals import EXIT_RESUME, ignore_signals
from utils.text import Vocabulary
from utils.train_options import parse_args
from utils.training import Stopped, Trainer, TrainOptions, fit
from utils.words import embeddings_file, read_embeddings, vocabulary_of


def main() -> int:
    """Train as the command line says. Returns 0, or EXIT_RESUME if a signal stopped it."""
    args = parse_args(__doc__)
    if args.deterministic:
        make_deterministic()
    ranks = distributed.start(args.device)
    if ranks.device.type == "cpu":
        settle_memory()
    try:
        return run(args, ranks)
    finally:
        distributed.finish()


def make_deterministic() -> None:
    """Equal runs on one kind of GPU give equal bits, where PyTorch has slower kernels for it; an error where not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def run(args, ranks: Ranks) -> int:
    """Wire data, model, optimiser and logs together, and train."""
    split, valset = BatchSplit(args.data_dir, args.set), BatchSplit(args.data_dir, args.valset)
    vocabulary = vocabulary_of(split, args.vocabulary)
    config = model_config(args, len(vocabulary))
    if args.print_model:
        print(describe(config), describe_memory(config), sep="\n\n")
        return 0
    check(args, split, ranks)
    folder = RunFolder(args.weights_dir / (args.exp_name or f"restr_{split.dataset}"), split.dataset, ranks.is_main)
    state = folder.newest(read_checkpoint) if args.resume else folder.check_fresh()
    if state:
        check_same_run(args, config, vocabulary, state)
    if args.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(args.seed)
    model = build_model(args, config, split, state).to(ranks.device)
    trainer = build_trainer(args, model, ranks)
    if state:
        restore(trainer, state, folder)
    known = state.training["log_bytes"] if state else 0
    del state  # as large as model and optimiser together
    log = NoLog()
    if ranks.is_main:
        log = RunLog(folder.path, trainer.step, known, recipe(args) if args.wandb else None)
    pictures = folder.path / "vis" if args.is_vis else None
    validation = Validation(valset, eval_settings(args), ranks, log, pictures, args.num_workers)
    experiment = Experiment(args, ranks, model, trainer, folder, log, vocabulary, validation)
    try:
        with explained_compiler(args.compile):
            fit(trainer, loader(args, split, trainer, ranks), log, experiment.save, experiment.validate)
    except Stopped:
        if ranks.is_main:
            print(f"saved step {trainer.step} in {folder.path}: continue with --resume", file=sys.stderr)
        return EXIT_RESUME
    finally:
        log.close()
    if ranks.is_main:
        print(f"{folder.path}: {trainer.step} steps, best {args.valset} oIoU {trainer.best:.2f}")
    return 0


@dataclass
class Experiment:
    """A run's model and state, and how they get to disk; only the first rank writes."""

    args: Namespace
    ranks: Ranks
    model: torch.nn.Module
    trainer: Trainer
    folder: RunFolder
    log: RunLog | NoLog
    vocabulary: Vocabulary
    validation: Validation

    def checkpoint(self, training: dict | None = None, metrics: dict | None = None) -> Checkpoint:
        """The weights as they are, and what they were trained on."""
        data = {
            "dataset": self.folder.dataset,
            "set": self.args.set,
            "image_size": list(self.args.input_size),
            "vocabulary_sha256": self.vocabulary.sha256,
        }
        weights, config, step = self.model.state_dict(), self.model.config, self.trainer.step
        return Checkpoint(weights, config, self.vocabulary.words, data, step, metrics or {}, training)

    def save(self) -> None:
        """The whole state, to continue from."""
        training = {"trainer": self.trainer.state(), "options": recipe(self.args), "log_bytes": self.log.position()}
        if self.ranks.is_main:
            self.folder.save_last(lambda file: save_checkpoint(file, self.checkpoint(training)))

    def validate(self) -> None:
        """Evaluate; write the numbered and perhaps the best checkpoint, and the state that knows of them."""
        metrics, trainer = self.validation(self.model, self.trainer.step), self.trainer
        best = trainer.best is None or metrics["oIoU"] > trainer.best
        trainer.best, trainer.validated = metrics["oIoU"] if best else trainer.best, trainer.step
        if self.ranks.is_main:
            save_checkpoint(self.folder.numbered(trainer.step), self.checkpoint(metrics=metrics))
            if best:
                save_checkpoint(self.folder.best, self.checkpoint(metrics=metrics))
            self.folder.prune(self.args.keep)
        self.save()


def model_config(args, words: int) -> ReSTRConfig:
    """The model that the flags ask for, over a vocabulary of `words` words."""
    return ReSTRConfig(
        vision_config(args.v_backbone, args.input_size, drop_path=args.drop_path),
        replace(LANGUAGE_BACKBONES[args.l_backbone], vocabulary_size=words),
        FusionConfig(args.fusion, layers=args.tr_n_layers, shared=args.is_shared, drop_path=args.drop_path),
        DecoderConfig(not args.no_decoder),
    )


def check(args, split: BatchSplit, ranks: Ranks) -> None:
    """Raise InputError for flags and data that do not go together."""
    if split.image_size != args.input_size:
        asked, built = (f"{height},{width}" for height, width in (args.input_size, split.image_size))
        raise InputError(f"{args.data_dir} was built for --input_size {built}, not {asked}: pass it, or build again")
    if args.batch_size % (ranks.world * args.accum):
        parts = f"{ranks.world} processes x --accum {args.accum}"
        raise InputError(f"--batch_size {args.batch_size} cannot be divided by {parts}")


def build_model(args, config: ReSTRConfig, split: BatchSplit, state: Checkpoint | None) -> torch.nn.Module:
    """The model with its first weights: the saved ones, or a pre-trained ViT and GloVe."""
    model = build_restr(config)
    if state:
        model.load_state_dict(state.weights)
    else:
        file = args.embeddings or embeddings_file(split)
        if args.random_embeddings or (args.no_pretrained and not args.embeddings and not file.exists()):
            print("word embeddings start from random values", file=sys.stderr)
        else:
            table = read_embeddings(file, config.language.vocabulary_size, config.language.width)
            model.language.embedding.weight.data.copy_(torch.from_numpy(table))
        if not args.no_pretrained:
            model.vision.load_pretrained(args.v_weights)
    model.set_grad_checkpointing(args.grad_checkpoint)
    return model


def build_trainer(args, model: torch.nn.Module, ranks: Ranks) -> Trainer:
    """Optimiser, loss and schedule as SPEC section 8 has them."""
    groups = model.parameter_groups(args.lr, args.v_lr_scale)
    if args.adamW:
        optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(groups, momentum=args.momentum, weight_decay=args.weight_decay)
    alpha = None if args.no_decoder else args.alpha_loc
    loss = LossConfig(alpha, args.patch_label, args.patch_thres)
    if args.compile:
        model.compile()  # in place: names in the state dict stay, and DDP's hooks stay outside
    if ranks.world > 1:
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        model = DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    options = TrainOptions(
        num_steps=args.num_steps,
        batch_size=args.batch_size,
        log_every=args.log_every,
        save_every=args.save_every,
        grad_clip=args.grad_clip,
        accum=args.accum,
        seed=args.seed,
        max_bad_steps=args.max_bad_steps,
        amp=args.amp_dtype,
    )
    schedule = Schedule(args.lr, args.end_lr, args.num_steps, args.warm_iter, args.power, args.is_cos)
    return Trainer(model, optimizer, lambda *batch: restr_loss(*batch, loss), schedule, options, ranks)


@contextmanager
def explained_compiler(enabled: bool) -> Iterator[None]:
    """Turn an exception of torch.compile, which works at the first step, into an InputError."""
    try:
        yield
    except Exception as error:
        if enabled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(f"--compile: {one_line(error, 160)}: leave it out, or install a C++ compiler") from None
        raise


def loader(args, split: BatchSplit, trainer: Trainer, ranks: Ranks) -> DataLoader:
    """Micro-batches of this rank from the trainer's step on."""
    sampler = StepSampler(
        len(split), args.batch_size, args.seed, trainer.step, args.num_steps, ranks.rank, ranks.world, args.accum
    )
    return DataLoader(
        TrainDataset(split),
        batch_sampler=sampler,
        num_workers=args.num_workers,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        pin_memory=ranks.device.type == "cuda",
    )


def eval_settings(args) -> EvalSettings:
    """The evaluation protocol that validation uses."""
    return EvalSettings(
        pad=args.eval_pad, antialias=args.eval_antialias, batch_size=args.eval_batch_size, amp=args.amp_dtype
    )


def recipe(args) -> dict:
    """The flags that decide weights and log; a resumed run must have the same."""
    names = (
        "set valset batch_size num_steps adamW lr v_lr_scale end_lr warm_iter power is_cos weight_decay momentum "
        "grad_clip alpha_loc patch_label patch_thres seed save_every log_every amp amp_dtype eval_pad eval_antialias"
    )
    return {name: getattr(args, name) for name in names.split()}


def check_same_run(args, config: ReSTRConfig, vocabulary: Vocabulary, state: Checkpoint) -> None:
    """Raise InputError if the run to be resumed had other flags, another model or other words."""
    training = state.training or {}
    options, position = training.get("options"), training.get("log_bytes")
    if not isinstance(options, dict) or type(position) is not int or position < 0:
        raise InputError("--resume: the checkpoint holds no training state: choose another --exp_name")
    for name, now in recipe(args).items():
        then = options.get(name)
        if then != now:
            raise InputError(
                f"--resume: the run has --{name} {one_line(then, 40)}, not {now}: pass the same, or another --exp_name"
            )
    if state.config != config or state.vocabulary != vocabulary.words:
        raise InputError("--resume: the run has another model or vocabulary: pass its flags, or another --exp_name")


def restore(trainer: Trainer, state: Checkpoint, folder: RunFolder) -> None:
    """Continue from a saved state. Raises InputError if it is none of this run's optimiser."""
    try:
        trainer.restore(state.training["trainer"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fault = one_line(f"{type(error).__name__}: {error}", 120)
        raise InputError(f"{folder.path}: its state cannot be continued ({fault}): choose another --exp_name") from None


if __name__ == "__main__":
    run_main(main)
