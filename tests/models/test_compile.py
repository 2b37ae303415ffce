"""`--compile`: the same losses, weights and names as without it, also around checkpointing and inside DDP.

The graphs are captured and differentiated as for a GPU, but run by PyTorch's own kernels: C++ for hundreds of them
takes minutes to compile.
"""

import functools
from dataclasses import replace

import pytest
import torch
from torch import distributed, nn

import train_restr
from models import build_restr
from tests.support.small_model import CONFIG, WORDS
from tests.support.train_runs import FLAGS
from train.options import parse_options
from utils.device import Ranks
from utils.errors import InputError

pytestmark = pytest.mark.slow
COMPILE = nn.Module.compile


@pytest.fixture(autouse=True)
def without_a_cpp_compiler(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def batch(size=4):
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (size, 3, 32, 48), dtype=torch.uint8, generator=generator)
    mask = torch.rand(size, 1, 32, 48, generator=generator) < 0.3
    return {"image": image, "mask": mask, "ids": torch.randint(0, len(WORDS), (size, 20), generator=generator)}


def losses(*flags, world=1, steps=3, config=CONFIG):
    """Losses of some steps with those flags, and the model."""
    options = parse_options("", ["--data_dir", ".", *FLAGS, "--warm_iter", "0", *flags])
    torch.manual_seed(0)
    model = build_restr(config)
    model.set_grad_checkpointing(options.machine.grad_checkpoint)
    trainer = train_restr.build_trainer(options, model.train(), Ranks(torch.device("cpu"), 0, world))
    return [trainer.train_step([batch()])["loss"] for _ in range(steps)], model


def test_compiled_steps_are_the_eager_ones():
    eager, plain = losses("--grad_checkpoint")
    compiled, model = losses("--grad_checkpoint", "--compile")
    assert model._compiled_call_impl is not None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert compiled[0] > compiled[-1]
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_only_the_samples_of_a_step_are_in_another_place_than_before(monkeypatch):
    """CUDA graphs copy what they are called with, and are recorded again if any other tensor has moved."""
    places, kept = {}, []

    def watched(graph, inputs, **how):
        names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]

        def run(*arguments):
            kept.append(arguments)  # so that no place is taken twice
            for name, value in zip(names, arguments, strict=True):
                if isinstance(value, torch.Tensor):
                    places.setdefault(name, set()).add(value.data_ptr())
            return graph(*arguments)

        return run

    modes = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: (modes.append(mode), COMPILE(self, backend=watched)))
    losses("--compile", "reduce-overhead")
    assert modes == ["reduce-overhead"]
    assert {name for name, found in places.items() if len(found) > 1} == {"l_image_", "l_ids_"}


def test_a_compiled_text_encoder_is_one_graph(tmp_path):
    pytest.importorskip("transformers")
    from tests.support.text_encoders import write_text_encoder
    from train.text_encoder import read_text_encoder

    language = read_text_encoder(str(write_text_encoder(tmp_path / "bert")), 20)
    config = replace(CONFIG, language=language)
    eager, _ = losses(config=config)
    compiled, _ = losses("--compile", config=config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled == pytest.approx(eager, rel=1e-5)


def test_the_compiled_model_is_inside_ddp(tmp_path):
    # The group of two has one process here, whose part of the draws for dropped blocks would be too small.
    whole = replace(CONFIG, vision=replace(CONFIG.vision, drop_path=0.0), fusion=replace(CONFIG.fusion, drop_path=0.0))
    eager, _ = losses(config=whole)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        compiled, model = losses("--compile", world=2, config=whole)
    finally:
        distributed.destroy_process_group()
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert all(not name.startswith("module.") and "_orig_mod" not in name for name in model.state_dict())


def test_a_failing_compiler_is_one_line():
    with pytest.raises(InputError, match="--compile: .*leave it out"), train_restr.explained(True):
        raise torch._dynamo.exc.BackendCompilerFailed(print, RuntimeError("no\ncompiler"), None)
    with pytest.raises(RuntimeError), train_restr.explained(False):
        raise RuntimeError("something else")
