"""The command line of train_restr.py. SPEC section 2."""

import os
from argparse import ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import torch

from utils.errors import ArgumentParser, InputError


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults in the help, the description as it is written."""


def size(text: str) -> tuple[int, int]:
    """ "480,640" or "480" to (height, width) in pixels, for argparse."""
    parts = [int(part) for part in text.split(",")]
    if len(parts) > 2 or min(parts) < 1:
        raise ValueError
    return parts[0], parts[-1]


def parse_args(description: str) -> Namespace:
    """Parse the command line and fill in what depends on other flags. Raises InputError for values that cannot be."""
    parser = ArgumentParser(description=description, formatter_class=_Help)
    _data_flags(parser.add_argument_group("data"))
    _model_flags(parser.add_argument_group("model"))
    _recipe_flags(parser.add_argument_group("recipe"))
    _run_flags(parser.add_argument_group("run"))
    args = parser.parse_args()
    if args.warm_iter is None:
        args.warm_iter = args.num_steps // 10
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: must not be negative")
    for name in ("batch_size", "num_steps", "log_every", "save_every", "accum", "max_bad_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 1")
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    args.amp_dtype = dtypes[args.amp_dtype] if args.amp else None
    return args


PATCH_HELP = "what the count (any: as the reference) or the share (share) of a patch's mask pixels must exceed"


def _data_flags(group) -> None:
    group.add_argument("--data_dir", type=Path, required=True, help="folder written by build_batches.py")
    group.add_argument("--set", default="train", help="split to train on")
    group.add_argument("--valset", default="val", help="split to validate on")
    group.add_argument("--input_size", "--input-size", type=size, default=(480, 480), help="height,width in pixels")
    group.add_argument(
        "--vocabulary", type=Path, help="for a folder made by the reference (default: DATA/vocabulary_NAME.txt)"
    )
    group.add_argument(
        "--num_workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that load samples"
    )
    group.add_argument(
        "--embeddings", type=Path, help="word embedding table (default: DATA/NAME_emb.npy beside the vocabulary)"
    )


def _model_flags(group) -> None:
    group.add_argument("--v_backbone", default="vit_base_patch16_384", help="a plain ViT of timm, or vit_shapes_patch8")
    group.add_argument("--l_backbone", default="transformer_glove", choices=["transformer_glove", "transformer_shapes"])
    group.add_argument("--mm_fusion", default="decoder_transformer", choices=["decoder_transformer"])
    group.add_argument("--fusion", default="indirect", choices=["indirect", "independent", "vanilla"], help="ablation")
    group.add_argument("--tr_n_layers", type=int, default=2, help="blocks of each fusion encoder")
    group.add_argument("--drop_path", type=float, default=0.1, help="stochastic depth of each encoder's last block")
    group.add_argument("--is_shared", action="store_true", help="one block applied --tr_n_layers times in each of them")
    group.add_argument("--no_decoder", action="store_true", help="patch logits only, without the patch loss")
    group.add_argument("--v_weights", type=Path, help="ViT weights: .npz, .pth or .safetensors (default: timm's hub)")
    group.add_argument(
        "--no_pretrained", action="store_true", help="random ViT weights; a missing embedding table is no error"
    )
    group.add_argument("--random_embeddings", action="store_true", help="random word embeddings")
    group.add_argument(
        "--print_model", action="store_true", help="print parameters, FLOPs and memory of a step, and stop"
    )


def _recipe_flags(group) -> None:
    group.add_argument("--batch_size", type=int, default=8, help="samples a step, over all processes")
    group.add_argument("--accum", type=int, default=1, help="cut each step into so many micro-batches: less memory")
    group.add_argument("--num_steps", type=int, default=400_000)
    group.add_argument("--adamW", action="store_true", help="AdamW (the paper's); without it SGD with --momentum")
    group.add_argument("--lr", type=float, default=1e-5, help="peak learning rate of language and fusion")
    group.add_argument("--v_lr_scale", type=float, default=0.1, help="the vision encoder's share of --lr")
    group.add_argument("--end_lr", type=float, default=0.0)
    group.add_argument("--warm_iter", type=int, help="steps of warm-up (default: a tenth of --num_steps)")
    group.add_argument("--power", type=float, default=0.9, help="of the polynomial schedule")
    group.add_argument("--is_cos", action="store_true", help="cosine schedule")
    group.add_argument("--weight_decay", type=float, default=5e-4)
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--grad_clip", type=float, default=0.0, help="largest gradient norm; 0: no clipping")
    group.add_argument("--alpha_loc", type=float, default=0.1, help="weight of the patch loss")
    group.add_argument(
        "--patch_label",
        default="any",
        choices=["any", "share"],
        help="label of a patch, see --patch_thres",
    )
    group.add_argument("--patch_thres", type=float, default=0.8, help=PATCH_HELP)
    group.add_argument("--seed", type=int, default=1)


def _run_flags(group) -> None:
    group.add_argument("--exp_name", help="name of the run's folder (default: restr_DATASET)")
    group.add_argument("--weights_dir", type=Path, default=Path("weights"), help="where the run's folder is made")
    group.add_argument("--resume", action="store_true", help="continue from last.pth")
    group.add_argument("--save_every", type=int, default=5000, help="steps between validations and checkpoints")
    group.add_argument("--keep", type=int, default=0, help="numbered checkpoints to keep; 0: all")
    group.add_argument("--log_every", type=int, default=100, help="steps between log lines")
    group.add_argument("--is_vis", action="store_true", help="pictures of some validation samples at each validation")
    group.add_argument("--max_bad_steps", type=int, default=10, help="stop after so many non-finite steps in a row")
    group.add_argument("--amp", action="store_true", help="mixed precision")
    group.add_argument(
        "--amp_dtype", default="bf16", choices=["bf16", "fp16"], help="of --amp; fp16 for GPUs before Ampere"
    )
    group.add_argument("--deterministic", action="store_true", help="the same bits from equal GPU runs: slower")
    group.add_argument("--compile", action="store_true", help="torch.compile: faster steps after a minute or two")
    group.add_argument(
        "--tf32", action="store_true", help="float32 products in TF32 on GPUs that have it: for no --amp"
    )
    group.add_argument("--grad_checkpoint", action="store_true", help="recompute activations: less memory, slower")
    group.add_argument("--eval_batch_size", type=int, default=8, help="images and expressions a time in validation")
    group.add_argument("--eval_pad", default="grey", choices=["grey", "black"], help="padding in validation")
    group.add_argument("--eval_antialias", action="store_true", help="anti-aliased resize in validation")
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
