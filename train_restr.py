#!/usr/bin/env python
"""Train ReSTR.

    python train_restr.py --data_dir data/mscoco/unc_480_batch --adamW
    python train_restr.py --data_dir data/referit/referit_480_batch --set trainval --valset test --adamW
    torchrun --nproc_per_node 8 train_restr.py --data_dir data/mscoco/unc_480_batch --adamW --amp    # eight GPUs

A signal (Ctrl+C, SIGTERM, SIGUSR1, SIGHUP) saves and stops the run; the same command with --resume goes on.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from eval.evaluator import EvalSettings, check_room
from models import ReSTRConfig, build_restr
from models.config import LANGUAGE_BACKBONES, DecoderConfig, FusionConfig
from models.loss import LossConfig, restr_loss
from models.pretrained import load_pretrained
from models.vision import vision_config
from tools.model_size import describe
from train.data import TrainDataset, collate
from train.logs import NoLog, RunLog
from train.loop import Stopped, Trainer, TrainOptions, fit
from train.options import parse_args
from train.run import Experiment, RunFolder, data_of
from train.sampler import StepSampler
from train.schedule import Schedule
from train.validation import Validation
from utils import device as distributed
from utils.cli import run_main
from utils.device import Ranks, settle_memory
from utils.errors import InputError, one_line
from utils.loaders import EXIT_RESUME, StopSignal, check_shared_memory, explained_loaders, start_loader
from utils.prepared import PreparedSplit
from utils.text import PAD, TEXT_LENGTH, Vocabulary
from utils.words import embeddings_file, read_embeddings, vocabulary_of


def main() -> int:
    """Train as the command line says. Returns 0, or EXIT_RESUME if a signal stopped it."""
    args = parse_args(__doc__)
    if args.deterministic:
        make_deterministic()
    with distributed.group(args.device, args.local_rank) as ranks:
        if ranks.device.type == "cpu":
            settle_memory()
        return run(args, ranks)


def make_deterministic() -> None:
    """Equal runs on one kind of GPU give equal bits, where PyTorch has slower kernels for it; an error where not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def run(args, ranks: Ranks) -> int:
    """Wire data, model, optimiser and logs together, and train."""
    split, valset = PreparedSplit(args.data_dir, args.set), PreparedSplit(args.data_dir, args.valset)
    vocabulary = vocabulary_of(split, args.vocabulary)
    config = model_config(args, len(vocabulary))
    if args.print_model:
        if ranks.is_main:
            print(describe(config))
        return 0
    check(args, split, valset, ranks)
    stop = StopSignal(ranks.is_main)
    path = args.weights_dir / (args.exp_name or f"restr_{split.dataset}")
    with RunFolder(path, split.dataset, ranks.is_main) as folder:
        experiment = prepare(args, ranks, folder, config, vocabulary, {args.set: split, args.valset: valset})
        return train(experiment, split, stop)


def prepare(args, ranks: Ranks, folder: RunFolder, config: ReSTRConfig, vocabulary: Vocabulary, splits) -> Experiment:
    """The run with its model, optimiser, log and validation, at its first step or where it was stopped."""
    resuming = folder.begin(args.resume)
    if args.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(args.seed)
    model = build_model(args, config, splits[args.set], resuming, ranks).to(ranks.device)
    trainer = build_trainer(args, model, ranks)
    experiment = Experiment(args, ranks, model, trainer, folder, vocabulary, data_of(args, splits, vocabulary))
    known = experiment.resume() if resuming else 0
    log = experiment.log = open_log(experiment, known)
    pictures = folder.path / "vis" if args.is_vis else None
    settings = eval_settings(args)
    experiment.validation = Validation(splits[args.valset], settings, ranks, log, pictures, args.num_workers)
    return experiment


def train(experiment: Experiment, split: PreparedSplit, stop: StopSignal) -> int:
    """Train to the end, or until a signal comes. Returns the exit code."""
    args, ranks, trainer, log = experiment.args, experiment.ranks, experiment.trainer, experiment.log
    folder = experiment.folder.path
    try:
        with explained(args.compile), explained_loaders():
            fit(trainer, loader(args, split, trainer, ranks), log, experiment.save, experiment.validate, stop)
    except Stopped:
        if ranks.is_main:
            print(f"saved step {trainer.step} in {folder}: continue with --resume", file=sys.stderr)
        return EXIT_RESUME
    finally:
        log.close()
    if ranks.is_main:
        print(f"{folder}: {trainer.step} steps, best {args.valset} oIoU {trainer.best:.2f}")
    return 0


def open_log(experiment: Experiment, known: int) -> RunLog | NoLog:
    """The run's log, cut back to the `known` bytes of log.jsonl; nothing where another rank writes."""
    if not experiment.ranks.is_main:
        return NoLog()
    wandb = experiment.recipe if experiment.args.wandb else None
    return RunLog(experiment.folder.path, experiment.trainer.step, known, wandb)


def model_config(args, words: int) -> ReSTRConfig:
    """The model that the flags ask for, over a vocabulary of `words` words."""
    return ReSTRConfig(
        vision_config(args.v_backbone, args.input_size, drop_path=args.drop_path),
        replace(LANGUAGE_BACKBONES[args.l_backbone], vocabulary_size=words),
        FusionConfig(args.fusion, layers=args.tr_n_layers, shared=args.is_shared, drop_path=args.drop_path),
        DecoderConfig(not args.no_decoder),
    )


def check(args, split: PreparedSplit, valset: PreparedSplit, ranks: Ranks) -> None:
    """Raise InputError for flags and data that do not go together."""
    if split.image_size not in (None, args.input_size):  # None: the authors' folder, images of their own sizes
        asked, built = (f"{height},{width}" for height, width in (args.input_size, split.image_size))
        raise InputError(f"{args.data_dir} was built for --input_size {built}, not {asked}: pass it, or build again")
    if args.batch_size % (ranks.world * args.accum):
        parts = f"{ranks.world} processes x --accum {args.accum}"
        raise InputError(f"--batch_size {args.batch_size} cannot be divided by {parts}")
    sample = 4 * math.prod(args.input_size) + 8 * TEXT_LENGTH  # bytes of TrainDataset's image, mask and ids
    check_shared_memory(sample * args.batch_size // (ranks.world * args.accum), args.num_workers, args.accum)
    check_room(valset, args.eval_batch_size, args.num_workers)


def build_model(args, config: ReSTRConfig, split: PreparedSplit, resuming: bool, ranks: Ranks) -> torch.nn.Module:
    """The model with its first weights: a pre-trained ViT and GloVe, unless saved ones are to come."""
    model = build_restr(config)
    if not resuming:
        file = args.embeddings or embeddings_file(split)
        missing = args.no_pretrained and not args.embeddings and not file.exists()
        if args.random_embeddings or missing:
            why = f"{file} is not there" if missing else "--random_embeddings"
            if ranks.is_main:
                print(f"word embeddings start from random values: {why}", file=sys.stderr)
        else:
            table = read_embeddings(file, config.language.vocabulary_size, config.language.width)
            table[PAD] = 0  # also where a table of others is not: the padding row gets no gradient, so it would stay
            model.language.embedding.weight.data.copy_(torch.from_numpy(table))
        if not args.no_pretrained:
            try:
                load_pretrained(model.vision, args.v_weights)
            except InputError as error:
                raise InputError(f"{error} (--v_weights FILE, or --no_pretrained)") from None
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
def explained(compiled: bool) -> Iterator[None]:
    """Turn want of memory, and exceptions of torch.compile, which works at the first step, into an InputError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "pass --accum 2 (4, 8, ...) for the same steps in less memory, --amp or --grad_checkpoint"
        raise InputError(f"out of GPU memory: {remedy} ({one_line(error, 120)})") from None
    except Exception as error:
        if compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(f"--compile: {one_line(error, 160)}: leave it out, or install a C++ compiler") from None
        raise


def loader(args, split: PreparedSplit, trainer: Trainer, ranks: Ranks) -> DataLoader:
    """Micro-batches of this rank from the trainer's step on."""
    sampler = StepSampler(
        len(split), args.batch_size, args.seed, trainer.step, args.num_steps, ranks.rank, ranks.world, args.accum
    )
    return DataLoader(
        TrainDataset(split, args.input_size),
        batch_sampler=sampler,
        num_workers=args.num_workers,
        collate_fn=collate,
        worker_init_fn=start_loader,
        pin_memory=ranks.device.type == "cuda",
    )


def eval_settings(args) -> EvalSettings:
    """The evaluation protocol that validation uses."""
    return EvalSettings(
        pad=args.eval_pad, antialias=args.eval_antialias, batch_size=args.eval_batch_size, amp=args.amp_dtype
    )


if __name__ == "__main__":
    run_main(main)
