"""The command line of train_restr.py: each field of a class is a flag. Paper section 4.1.

`harmless` says why a run may go on with another value; the other flags are compared on --resume.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from eval.evaluator import EvalSettings
from eval.loaders import default_workers
from models.config import LANGUAGE_BACKBONES, DecoderConfig, FusionConfig, ReSTRConfig, VisionConfig
from models.fusion import VARIANTS
from models.loss import LossConfig
from models.vision import vision_config
from train.text_encoder import read_text_encoder
from utils.cli import ArgumentParser
from utils.device import Precision, Process
from utils.errors import InputError
from utils.options import COUNT, COUNT_OR_0, POSITIVE, add_options, flags_of, option, read_options, size
from utils.text import TEXT_LENGTH

CONTENT = "its content is compared, so that a folder may move"
CONFIG = "the configuration of the model is compared"
TEXT = "the configuration of the text encoder is compared"
START = "read at step 0 only"
PLACE = "which run, not how"
FILES = "more or fewer files beside the same weights and log"
SPEED = "memory and speed only"
SKIPPED = "when to give up; a skipped step changes no weight"
ROUNDING = "the same step except for rounding"
CHECK = "nothing that the run computes"
WORKERS = default_workers()
VAL_LIMITS = {"referit": 10_000}  # of data sets whose validation is not whole; as many as the authors' code judges
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of torch.compile, which record CUDA graphs


@dataclass
class DataOptions:
    """What is trained and validated on."""

    data_dir: list[Path] = option(..., "folder, or folders, written by build_batches.py", nargs="+", harmless=CONTENT)
    set: str = option("train", "split to train on", harmless=CONTENT)
    valset: str = option("val", "split to validate on", harmless=CONTENT)
    mix: list[int] | None = option(
        None, "share of each folder, such as 2 1 1 (default: the size of each)", nargs="+", limits=(1, 1000)
    )
    keep_overlap: bool = option(False, "train on images of the folders' evaluation splits, too", harmless=CONTENT)
    overfit: int | None = option(
        None, "train and validate on the first N expressions of --set: IoU near 1, or something is wrong", limits=COUNT
    )
    input_size: tuple | None = option(
        None, "height,width in pixels (default: as DATA was built)", type=size, metavar="H,W", harmless=CONFIG
    )
    vocabulary: Path | None = option(None, "word list (default: DATA/vocabulary_NAME.txt)", harmless=CONTENT)
    embeddings: Path | None = option(None, "word embeddings (default: DATA/NAME_emb.npy)", harmless=START)
    num_workers: int = option(WORKERS, "processes that load samples; 0: none", limits=(0, 1024), harmless=SPEED)


@dataclass
class ModelOptions:
    """The shape of the model and its first weights."""

    v_backbone: str = option(VisionConfig.backbone, "plain ViT of timm, or vit_shapes_patch8 (demo)", harmless=CONFIG)
    l_backbone: str = option(
        "transformer_glove",
        f"{', '.join(LANGUAGE_BACKBONES)}, or a text encoder of transformers: a folder, or a name on the hub",
        harmless=CONFIG,
    )
    text_length: int = option(TEXT_LENGTH, "tokens of a text encoder of transformers", limits=(4, 64), harmless=TEXT)
    mm_fusion: str = option("decoder_transformer", "the only one", choices=["decoder_transformer"], harmless=CONFIG)
    fusion: str = option(FusionConfig.variant, "fusion encoder", choices=[*VARIANTS], harmless=CONFIG)
    tr_n_layers: int = option(FusionConfig.layers, "blocks of each fusion encoder", limits=(1, 1000), harmless=CONFIG)
    drop_path: float = option(FusionConfig.drop_path, "share of dropped last blocks", limits=(0, 0.9), harmless=CONFIG)
    is_shared: bool = option(False, "one block applied --tr_n_layers times in each fusion encoder", harmless=CONFIG)
    no_decoder: bool = option(False, "patch logits only, without the patch loss", harmless=CONFIG)
    start_from: str | None = option(
        None, "checkpoint whose weights a new run starts from", harmless=START, metavar="PATH"
    )
    v_weights: Path | None = option(None, "ViT weights (default: downloaded by timm)", harmless=START)
    no_pretrained: bool = option(False, "random ViT weights; embeddings may be missing", harmless=START)
    random_embeddings: bool = option(False, "random word embeddings", harmless=START)
    print_model: bool = option(False, "print parameters, FLOPs and the memory of a step, and stop", harmless=PLACE)

    @property
    def own_words(self) -> bool:
        """Whether the language encoder reads by the vocabulary of the data, and not by a tokeniser of its own."""
        return self.l_backbone in LANGUAGE_BACKBONES

    def config(self, image_size: tuple[int, int], words: int) -> ReSTRConfig:
        """The model that the flags ask for, for images of `image_size` and a vocabulary of `words` words."""
        if self.own_words:
            language = replace(LANGUAGE_BACKBONES[self.l_backbone], vocabulary_size=words)
        else:
            language = read_text_encoder(self.l_backbone, self.text_length)
        return ReSTRConfig(
            vision_config(self.v_backbone, image_size, drop_path=self.drop_path),
            language,
            FusionConfig(self.fusion, layers=self.tr_n_layers, shared=self.is_shared, drop_path=self.drop_path),
            DecoderConfig(not self.no_decoder),
        )


@dataclass
class Recipe:
    """Optimiser and schedule; counts are in steps of the global batch. The defaults are the paper's, with --adamW."""

    batch_size: int = option(8, "samples per step, over all processes", limits=COUNT)  # paper: section 4.1
    accum: int = option(1, "micro-batches per step; more take less memory", limits=COUNT, harmless=ROUNDING)
    num_steps: int = option(400_000, "steps of the whole run", limits=COUNT)  # paper: section 4.1
    adamW: bool = option(False, "AdamW (the paper's); without it SGD with --momentum")
    lr: float = option(1e-5, "peak learning rate of language and fusion", limits=(1e-20, 1e6))  # paper: section 4.1
    v_lr_scale: float = option(0.1, "share of --lr for the vision encoder", limits=POSITIVE)  # paper: section 4.1
    end_lr: float = option(0.0, "learning rate at the last step", limits=POSITIVE)
    warm_iter: int | None = option(None, "steps of linear warm-up (default: a tenth of --num_steps)", limits=COUNT_OR_0)
    power: float = option(0.9, "exponent of the polynomial decay", limits=(0, 100))  # paper: section 4.1
    is_cos: bool = option(False, "cosine schedule instead of the polynomial one")
    weight_decay: float = option(5e-4, "weight decay of the optimiser", limits=(0, 1))  # paper: section 4.1
    momentum: float = option(0.9, "momentum of SGD", limits=(0, 1))
    grad_clip: float = option(0.0, "largest gradient norm; 0: no clipping", limits=POSITIVE)
    seed: int = option(1, "seed of weights, sample order and dropped blocks", limits=(0, 2**63 - 1))
    max_bad_steps: int = option(10, "non-finite steps in a row before the run stops", limits=COUNT, harmless=SKIPPED)

    def __post_init__(self):
        if self.warm_iter is None:
            self.warm_iter = self.num_steps // 10

    def samples_at_a_time(self, world: int) -> int:
        """Samples of a micro-batch of one of `world` processes. Raises InputError if the batch cannot be divided."""
        if self.batch_size % (world * self.accum):
            raise InputError(
                f"--batch_size {self.batch_size} cannot be divided by {world} processes x --accum {self.accum}"
            )
        return self.batch_size // (world * self.accum)

    def lr_factor(self, step: int) -> float:
        """Learning rate of the `step`-th update, counted from 0, as a multiple of the peak. Paper section 4.1.

        Linear warm-up from `end_lr` (the cosine schedule: from 0), then a polynomial or half a cosine down to `end_lr`.
        """
        floor = self.end_lr / self.lr
        if step < self.warm_iter:
            if self.is_cos:  # the authors' code means this, and computes step + 1 / warmup by a slip
                return (step + 1) / self.warm_iter
            return floor + (1 - floor) * step / self.warm_iter
        t = min(1.0, (step - self.warm_iter) / max(1, self.num_steps - self.warm_iter))
        falling = 0.5 * (1 + math.cos(math.pi * t)) if self.is_cos else (1 - t) ** self.power
        return floor + (1 - floor) * falling


@dataclass
class RunOptions:
    """The folder of the run, and what is written there."""

    exp_name: str | None = option(None, "name of the run (default: restr_DATASET)", metavar="EXP", harmless=PLACE)
    weights_dir: Path = option(Path("weights"), "parent folder of the run's folder", harmless=PLACE)
    resume: bool = option(False, "continue from last.pth", harmless=PLACE)
    allow_changes: bool = option(False, "with --resume, accept flags that differ from the saved run", harmless=PLACE)
    no_check: bool = option(False, "no trial of validation and checkpoint before the first step", harmless=CHECK)
    save_every: int = option(5000, "steps between validations and checkpoints", limits=COUNT)
    keep: int | None = option(
        None, "newest numbered checkpoints that stay; 0: all (default: 3)", limits=COUNT_OR_0, harmless=FILES
    )
    log_every: int = option(100, "steps between log lines", limits=COUNT)
    wandb: bool = option(False, "copy TensorBoard's content to Weights & Biases (pip install wandb)", harmless=FILES)
    is_vis: bool = option(False, "at each validation, image files of TensorBoard's samples", harmless=FILES)


@dataclass
class Machine(Process, Precision):
    """How the same steps are computed."""

    tf32: bool = option(False, "float32 products in TF32 on GPUs that have it (without --amp)")
    compile: str | None = option(
        None,
        "torch.compile, perhaps in a mode: faster steps after minutes; reduce-overhead: CUDA graphs, for small batches",
        nargs="?",
        const="default",
        choices=["default", *GRAPH_MODES],
        harmless=ROUNDING,
    )
    grad_checkpoint: bool = option(False, "recompute activations: less memory, slower", harmless=ROUNDING)
    deterministic: bool = option(False, "the same bits from equal GPU runs: slower", harmless=ROUNDING)


@dataclass(frozen=True)
class Validation(EvalSettings):
    """How the run is validated: the threshold has no flag, and --batch_size is that of training."""

    threshold: float = EvalSettings.threshold
    val_limit: int | None = option(
        None, "expressions to validate on, evenly spread; 0: all (default: all, of referit 10,000)", limits=COUNT_OR_0
    )
    batch_size: int = option(
        8, "images, and expressions, at a time", flag="eval_batch_size", limits=(1, 1024), harmless=SPEED
    )


# Flags of ModelOptions of which one at most can be given.
CONTRADICTIONS = {"no_pretrained": ["v_weights"], "start_from": ["no_pretrained", "v_weights", "random_embeddings"]}


@dataclass
class Options:
    """All flags; each field is a group of them in --help."""

    data: DataOptions
    model: ModelOptions
    recipe: Recipe
    loss: LossConfig
    run: RunOptions
    machine: Machine
    validation: Validation

    def values(self) -> dict:
        """Flag -> value, of all flags."""
        return {name: getattr(getattr(self, part), field.name) for part, name, field in FLAGS}

    def compared(self) -> dict:
        """`values` of the flags that --resume compares by value; checkpoints hold them."""
        harmless = {name for _, name, field in FLAGS if field.metadata["harmless"]}
        return {name: value for name, value in self.values().items() if name not in harmless}


GROUPS = {field.name: field.type for field in fields(Options)}
FLAGS = [(part, *flag) for part, kind in GROUPS.items() for flag in flags_of(kind)]  # field of Options, flag, its field


def parse_options(description: str, arguments: list[str] | None = None) -> Options:
    """Parse the command line. Raises InputError for values that do not go together."""
    parser = ArgumentParser(underscores=True, description=description)
    for part, kind in GROUPS.items():
        add_options(parser.add_argument_group(part), kind)
    args = parser.parse_args(arguments)
    options = Options(**{part: read_options(kind, args) for part, kind in GROUPS.items()})
    options.validation = replace(options.validation, amp=options.machine.amp_dtype)
    for one, others in CONTRADICTIONS.items():
        for other in others:
            if getattr(options.model, one) and getattr(options.model, other):
                raise InputError(f"--{one} and --{other} contradict each other: leave one out")
    if options.machine.compile in GRAPH_MODES and options.recipe.accum > 1:
        # each replay writes its gradients where the one before has left its own (PyTorch issue 169545)
        raise InputError(
            f"--compile {options.machine.compile} cannot add up gradients: use --compile alone, or no --accum"
        )
    if options.model.own_words and options.model.text_length != TEXT_LENGTH:
        raise InputError(
            f"--text_length is for text encoders of transformers: {options.model.l_backbone} reads {TEXT_LENGTH}"
        )
    if not options.model.own_words and (options.model.random_embeddings or options.data.embeddings):
        raise InputError(f"--l_backbone {options.model.l_backbone} has its embeddings: leave out the flag for others")
    shares, folders = options.data.mix, options.data.data_dir
    if shares and len(shares) != len(folders):
        raise InputError(
            f"--mix {' '.join(map(str, shares))}: give one number for each folder, which are {len(folders)}"
        )
    if not str(options.run.weights_dir / (options.run.exp_name or "")).isprintable():
        raise InputError("--weights_dir and --exp_name must consist of printable characters")
    return options
