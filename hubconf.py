"""This code in another project: torch.hub.load(FOLDER, "restr", "best.pth", source="local")."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

dependencies = ["torch", "timm", "numpy", "PIL", "huggingface_hub", "safetensors"]
ROOMS = ("models", "utils")  # names that the caller's project may have too


def restr(checkpoint: str, device: str | None = None) -> "torch.nn.Module":
    """The ReSTR of a checkpoint, ready for `segment`, `set_image` and `predict`: a file, a folder or hf://owner/name.

    `device`: default CUDA if available, else the CPU. The caller's own modules `models` and `utils` stay what they are;
    so store the model's `state_dict()`: pickle would not find its classes. Raises InputError, a ValueError, for a file
    that is missing or is no checkpoint.
    """
    theirs = set_aside()
    try:
        from models import load_restr  # ours: torch.hub has put FOLDER first on sys.path

        return load_restr(checkpoint, device)
    finally:
        for name, module in set_aside().items():
            module.__name__ = f"restr_hub.{name}"  # under which torch.compile looks for a function's module
            sys.modules[module.__name__] = module
        sys.modules.update(theirs)


def set_aside() -> dict[str, ModuleType]:
    """The imported modules of ROOMS by name, which are then no longer imported."""
    names = [name for name in sys.modules if name.partition(".")[0] in ROOMS]
    return {name: sys.modules.pop(name) for name in names}
