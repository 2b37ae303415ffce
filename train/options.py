"""The command line of train_restr.py. SPEC section 2."""

import os
from argparse import Namespace
from pathlib import Path

from utils.cli import ArgumentParser, check_limits, size
from utils.device import AMP_DTYPES, add_local_rank
from utils.errors import InputError

MANY, LARGE = 10**9, 1e6


LIMITS = {  # flag -> least and most value
    **dict.fromkeys(("batch_size", "num_steps", "log_every", "save_every", "accum", "max_bad_steps"), (1, MANY)),
    **dict.fromkeys(("warm_iter", "keep"), (0, MANY)),
    **dict.fromkeys(("end_lr", "v_lr_scale", "grad_clip", "alpha_loc", "patch_thres"), (0, LARGE)),
    **dict.fromkeys(("momentum", "weight_decay"), (0, 1)),
    "eval_batch_size": (1, 1024),
    "num_workers": (0, 1024),
    "seed": (0, 2**63 - 1),
    "lr": (1e-20, LARGE),
    "power": (0, 100),
    "drop_path": (0, 0.9),
}


def parse_args(description: str) -> Namespace:
    """Parse the command line and fill in what depends on other flags. Raises InputError for values that cannot be."""
    parser = ArgumentParser(description=description)
    _data_flags(parser.add_argument_group("data"))
    _model_flags(parser.add_argument_group("model"))
    _recipe_flags(parser.add_argument_group("recipe"))
    _loss_flags(parser.add_argument_group("loss"))
    _run_flags(parser.add_argument_group("run"))
    _machine_flags(parser.add_argument_group("machine"))
    _validation_flags(parser.add_argument_group("validation"))
    add_local_rank(parser)
    args = parser.parse_args()
    if args.warm_iter is None:
        args.warm_iter = args.num_steps // 10
    check_limits(args, LIMITS)
    if args.no_pretrained and args.v_weights:
        raise InputError("--no_pretrained and --v_weights contradict each other: leave one out")
    if not str(args.weights_dir / (args.exp_name or "")).isprintable():
        raise InputError("--weights_dir and --exp_name must consist of printable characters")
    args.amp_dtype = args.amp_dtype if args.amp else None
    return args


def _data_flags(group) -> None:
    add = group.add_argument
    add("--data_dir", type=Path, metavar="DIR", required=True, help="folder written by build_batches.py")
    add("--set", default="train", help="split to train on")
    add("--valset", default="val", help="split to validate on")
    add("--input_size", "--input-size", type=size, metavar="H,W", default="480,480", help="height,width in pixels")
    words = "for a folder made by the reference (default: DATA/vocabulary_NAME.txt)"
    add("--vocabulary", type=Path, metavar="FILE", help=words)
    table = "word embedding table (default: DATA/NAME_emb.npy beside the vocabulary)"
    add("--embeddings", type=Path, metavar="FILE", help=table)
    add("--num_workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that load samples; 0: none")


def _model_flags(group) -> None:
    add = group.add_argument
    vision = "a plain ViT of timm, or vit_shapes_patch8 (small, for the demo)"
    add("--v_backbone", metavar="NAME", default="vit_base_patch16_384", help=vision)
    language = "language encoder; transformer_shapes is small, for the demo"
    add("--l_backbone", default="transformer_glove", choices=["transformer_glove", "transformer_shapes"], help=language)
    add("--mm_fusion", default="decoder_transformer", choices=["decoder_transformer"], help="the one that there is")
    add(
        "--fusion",
        default="indirect",
        choices=["indirect", "independent", "vanilla"],
        help="fusion encoder; the others are ablations",
    )
    add("--tr_n_layers", type=int, default=2, help="blocks of each fusion encoder")
    depth = "0 to 0.9: how often training leaves out the last block of vision and fusion encoders; earlier ones less"
    add("--drop_path", type=float, default=0.1, help=depth)
    add("--is_shared", action="store_true", help="one block applied --tr_n_layers times in each fusion encoder")
    add("--no_decoder", action="store_true", help="patch logits only, without the patch loss")
    weights = "ViT weights: .npz, .pth or .safetensors (default: downloaded by timm)"
    add("--v_weights", type=Path, metavar="FILE", help=weights)
    add("--no_pretrained", action="store_true", help="random ViT weights; a missing embedding table is no error")
    add("--random_embeddings", action="store_true", help="random word embeddings")
    add("--print_model", action="store_true", help="print parameters, FLOPs and memory of a step, and stop")


def _recipe_flags(group) -> None:
    add = group.add_argument
    add("--batch_size", type=int, default=8, help="samples a step, over all processes")
    add("--accum", type=int, default=1, help="cut each step into so many micro-batches: less memory")
    add("--num_steps", type=int, default=400_000, help="steps of the whole run")
    add("--adamW", action="store_true", help="AdamW (the paper's); without it SGD with --momentum")
    add("--lr", type=float, default=1e-5, help="peak learning rate of language and fusion")
    add("--v_lr_scale", type=float, default=0.1, help="the vision encoder's share of --lr")
    add("--end_lr", type=float, default=0.0, help="learning rate at the last step")
    add("--warm_iter", type=int, help="steps of linear warm-up (default: a tenth of --num_steps)")
    add("--power", type=float, default=0.9, help="of the polynomial schedule")
    add("--is_cos", action="store_true", help="cosine schedule instead of the polynomial one")
    add("--weight_decay", type=float, default=5e-4, help="of the optimiser")
    add("--momentum", type=float, default=0.9, help="of SGD")
    add("--grad_clip", type=float, default=0.0, help="largest gradient norm; 0: no clipping")
    add("--seed", type=int, default=1, help="of weights, order of samples and dropped blocks, 0 or more")


def _loss_flags(group) -> None:
    group.add_argument("--alpha_loc", type=float, default=0.1, help="weight of the patch loss")
    any_or_share = "a patch's label comes from the count (any: as the reference) or the share of its mask pixels"
    group.add_argument("--patch_label", default="any", choices=["any", "share"], help=any_or_share)
    group.add_argument("--patch_thres", type=float, default=0.8, help="what that count or share must exceed")


def _run_flags(group) -> None:
    add = group.add_argument
    add("--exp_name", metavar="EXP", help="name of the run's folder (default: restr_DATASET)")
    add("--weights_dir", type=Path, metavar="DIR", default="weights", help="where the run's folder is made")
    add("--resume", action="store_true", help="continue from last.pth")
    add("--allow_changes", action="store_true", help="of the recipe's flags, when --resume finds others in the run")
    add("--save_every", type=int, default=5000, help="steps between validations and checkpoints")
    add("--keep", type=int, default=0, help="numbered checkpoints to keep; 0: all")
    add("--log_every", type=int, default=100, help="steps between log lines")
    add("--wandb", action="store_true", help="send what TensorBoard shows to Weights & Biases, too (pip install wandb)")
    add("--max_bad_steps", type=int, default=10, help="stop after so many non-finite steps in a row")


def _machine_flags(group) -> None:
    add = group.add_argument
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp_dtype", default="bf16", choices=[*AMP_DTYPES], help="of --amp; fp16 for GPUs before Ampere")
    add("--tf32", action="store_true", help="float32 products in TF32 on GPUs that have it (without --amp)")
    add("--compile", action="store_true", help="torch.compile: faster steps after a minute or two")
    add("--grad_checkpoint", action="store_true", help="recompute activations: less memory, slower")
    add("--deterministic", action="store_true", help="the same bits from equal GPU runs: slower")


def _validation_flags(group) -> None:
    add = group.add_argument
    add("--eval_batch_size", type=int, default=8, help="images, and expressions, at a time")
    add("--eval_pad", default="grey", choices=["grey", "black"], help="canvas around the image; training pads black")
    add("--eval_antialias", action="store_true", help="shrink images through an anti-aliasing filter")
    add("--is_vis", action="store_true", help="pictures of some samples at each validation")
