#!/usr/bin/env python
"""Train ReSTR.

    python train_restr.py --data_dir data/mscoco/unc_480_batch --adamW
    python train_restr.py --data_dir data/referit/referit_480_batch --set trainval --valset test --adamW
    python train_restr.py --data_dir data/mscoco/unc_480_batch data/mscoco/Gref_480_batch --adamW    # both at once
    torchrun --nproc_per_node 8 train_restr.py --data_dir data/mscoco/unc_480_batch --adamW --amp    # eight GPUs

A signal (Ctrl+C, SIGTERM, SIGUSR1, SIGHUP) saves and stops the run; the same command with --resume goes on.
"""

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel

from eval.evaluator import check_room
from eval.loaders import check_shared_memory, explained_loaders
from models import ReSTRConfig, build_restr
from models.config import VisionConfig
from models.loss import restr_loss
from models.pretrained import load_pretrained
from train.data import micro_batches
from train.folders import TrainingSet, open_folders
from train.logs import pass_over_disk_errors
from train.loop import Stopped, Trainer, fit
from train.options import GRAPH_MODES, Options, parse_options
from train.process import EXIT_RESUME, StopSignal, settle_memory
from train.run import Run, check_ranks, data_of, locked, resumable
from train.start import announce, conclude
from train.start_from import start_from
from train.text_encoder import load_text_encoder, read_tokeniser
from utils.cli import run_main
from utils.device import ALLOCATOR, Ranks, explained_memory, from_first, group
from utils.errors import InputError, one_line
from utils.prepared import PreparedSplit
from utils.text import PAD, Vocabulary, read_embeddings


def main() -> int:
    """Train as the command line says. Returns 0, or EXIT_RESUME if a signal stopped it."""
    options = parse_options(__doc__)
    threading.excepthook = pass_over_disk_errors
    if options.machine.deterministic:  # equal bits on GPUs of one kind, or an error where PyTorch has no such kernel
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads what it has not written
    torch.backends.cudnn.benchmark = not options.machine.deterministic  # the shapes of training do not change
    if options.machine.compile in GRAPH_MODES and not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:False"  # recordings and these have met with faults of PyTorch
    with group(options.machine) as ranks:
        if ranks.device.type == "cpu":
            settle_memory()
        if options.machine.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        return train(options, ranks)


def train(options: Options, ranks: Ranks) -> int:
    """Wire data, model, optimiser and run together, and train. Returns the exit code."""
    data = options.data
    split, valsets, vocabulary = open_folders(data)
    data.input_size = data.input_size or split.image_size or VisionConfig.image_size
    config = options.model.config(data.input_size, len(vocabulary))
    if options.model.print_model:
        from tools.model_size import describe, describe_step

        if ranks.is_main:
            print(describe(config), describe_step(options, config, ranks.world), sep="\n")
        return 0
    check(options, split, valsets, ranks)
    stop = StopSignal(ranks.is_main)
    path = options.run.weights_dir / (options.run.exp_name or "_".join(["restr", *split.datasets]))
    with locked(path) if ranks.is_main else nullcontext():
        resuming = from_first(resumable(path, options.run.resume) if ranks.is_main else None)
        torch.manual_seed(options.recipe.seed)
        model, weights = build_model(options, config, split, vocabulary, resuming)
        words = model.subwords or vocabulary
        facts = data_of(data, split, valsets, words)
        check_ranks(options, facts, len(split))
        trainer = build_trainer(options, model.to(ranks.device), ranks)
        run = Run(options, ranks, model, trainer, path, words, facts, valsets)
        run.start(resuming)
        return carry_out(run, split, weights, stop)


def carry_out(run: Run, split: TrainingSet, weights: str, stop: StopSignal) -> int:
    """Check and train a run that has started from `weights`. Returns the exit code."""
    options, trainer = run.options, run.trainer
    try:
        announce(run, split, weights)
        with explained(options.machine.compile is not None), explained_loaders():
            if not options.run.no_check:
                run.check()
            fit(trainer, micro_batches(options, split, trainer.step, run.ranks), run, stop)
    except Stopped:
        if run.ranks.is_main:
            print(f"saved step {trainer.step} in {run.path}: continue with --resume", file=sys.stderr)
        return EXIT_RESUME
    finally:
        run.log.close()
    conclude(run)
    return 0


def check(options: Options, split: TrainingSet, valsets: dict[str, PreparedSplit], ranks: Ranks) -> None:
    """Raise InputError for flags and data that do not go together."""
    data, recipe = options.data, options.recipe
    if split.image_size not in (None, data.input_size):  # None: the authors' folder, images of their own sizes
        asked, built = (f"{height},{width}" for height, width in (data.input_size, split.image_size))
        raise InputError(f"--input_size {asked}: {data.data_dir[0]} was built at {built}; leave it out, or build again")
    sample = 4 * math.prod(data.input_size) + 8 * options.model.text_length  # bytes of image, mask and ids
    check_shared_memory(sample * recipe.samples_at_a_time(ranks.world), data.num_workers, recipe.accum)
    for valset in valsets.values():
        check_room(valset, options.validation.batch_size, data.num_workers)


def build_model(
    options: Options, config: ReSTRConfig, split: TrainingSet, vocabulary: Vocabulary, resuming: bool
) -> tuple[torch.nn.Module, str]:
    """The model with its first weights and their source: a pre-trained ViT and GloVe, unless there are trained ones."""
    model, flags = build_restr(config), options.model
    model.set_grad_checkpointing(options.machine.grad_checkpoint)
    if not flags.own_words:
        model.subwords = read_tokeniser(flags.l_backbone, config.language)
        split.tokenise_by(model.subwords)
    if resuming:
        return model, "saved by this run"
    if flags.start_from:
        return model, start_from(model, flags.start_from, vocabulary, options.data.embeddings, options.recipe.seed)
    file = options.data.embeddings or split.embeddings_file()
    missing = flags.no_pretrained and not options.data.embeddings and not file.exists()
    if not flags.own_words:
        load_text_encoder(model.language, flags.l_backbone)
        words = f"text encoder {flags.l_backbone}"
    elif flags.random_embeddings or missing:
        why = "--random_embeddings" if flags.random_embeddings else f"{file} is not there"
        words = f"word embeddings random: {why}"
    else:
        table = read_embeddings(file, config.language.vocabulary_size, config.language.width)
        table[PAD] = 0  # the padding row gets no gradient, so another table's value would stay
        model.language.embedding.weight.data.copy_(torch.from_numpy(table))
        words = f"word embeddings {file}"
    if not flags.no_pretrained:
        try:
            load_pretrained(model.vision, flags.v_weights)
        except InputError as error:
            raise InputError(f"{error} (--v_weights FILE, or --no_pretrained)") from None
    vision = flags.v_weights or f"{flags.v_backbone} of timm's hub"
    return model, f"ViT {'random: --no_pretrained' if flags.no_pretrained else vision}; {words}"


def build_trainer(options: Options, model: torch.nn.Module, ranks: Ranks) -> Trainer:
    """Optimiser, loss and schedule. Paper section 4.1."""
    recipe = options.recipe
    groups = model.parameter_groups(recipe.lr, recipe.v_lr_scale)
    if recipe.adamW:
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    loss = replace(options.loss, alpha_loc=None) if options.model.no_decoder else options.loss
    if options.machine.compile:
        model.compile(mode=options.machine.compile)  # in place: names in the state dict stay; DDP's hooks stay outside
    if ranks.world > 1:
        settle_strides(model)
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        model = DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    return Trainer(model, optimizer, lambda *batch: restr_loss(*batch, loss), recipe, ranks, options.machine.amp_dtype)


def settle_strides(model: torch.nn.Module) -> None:
    """Give gradients of 1 x 1 convolutions their weights' strides; cuDNN's mean the same memory, but DDP warns."""
    for weight in model.parameters():
        if weight.shape[2:] == (1, 1):
            weight.register_hook(lambda grad, like=weight: grad.as_strided(like.shape, like.stride()))


@contextmanager
def explained(compiled: bool) -> Iterator[None]:
    """Report out-of-memory and torch.compile failures (raised in the first step) as an InputError."""
    remedy = "pass --accum 2 (4, 8, ...) for the same steps in less memory, --amp or --grad_checkpoint"
    try:
        with explained_memory(remedy):
            yield
    except Exception as error:
        if compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(f"--compile: {one_line(error, 160)}: leave it out, or install a C++ compiler") from None
        raise


if __name__ == "__main__":
    run_main(main)
