"""A model for the weights of a file, built once they are known to fit."""

import torch

from models.config import ReSTRConfig
from models.restr import ReSTR, build_restr
from utils.errors import InputError, one_line


def model_with(config: ReSTRConfig, weights: dict[str, torch.Tensor]) -> ReSTR:
    """The model of `config` with `weights` (our names), in eval mode. Raises InputError if they do not fit."""
    check_weights(config, weights)
    model = build_restr(config)
    model.load_state_dict(weights)
    return model.eval()


def check_weights(config: ReSTRConfig, weights: dict[str, torch.Tensor]) -> None:
    """Raise InputError unless `weights` are those of a model of `config`.

    Names and shapes are compared on the meta device: a configuration from a stranger's file cannot make this machine
    allocate more than the file's own tensors take.
    """
    try:
        with torch.device("meta"):
            expected = build_restr(config).state_dict()
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"no model has these numbers: {one_line(error, 160) or type(error).__name__}") from None
    problem = _difference(expected, weights)
    if problem:
        raise InputError(problem)


def _difference(expected: dict[str, torch.Tensor], weights: dict) -> str | None:
    for name, shape in ((name, tuple(value.shape)) for name, value in expected.items()):
        if name not in weights:
            return f"{name} is missing"
        value = weights[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            return f"{name} is {found}, not a float tensor of shape {shape}"
        if value.is_meta or value.layout != torch.strided or value.untyped_storage().nbytes() < value.nbytes:
            return f"{name} claims more values than it holds"
    left_over = [name for name in weights if name not in expected]
    return f"{one_line(left_over[0], 80)} is left over" if left_over else None
