"""Which part of a model a pipeline rank keeps, and a backward pass in two halves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from test_families import DATA
from test_pipeline_parts import FAMILIES, batch_of, filled, gradients, made
from torch import Tensor, nn

from dml_runner.config import compose
from dml_runner.errors import ConfigError
from dml_runner.parallel.pipeline.halves import input_half
from dml_runner.parallel.stages import keep, users

# --- which part of a model a rank keeps ----------------------------------------------------------------------------------

SHARED = {"gpt": {"tokens.weight"}, "bert": {"tokens.weight"}, "rnn": {"tokens.weight"}}
"""What both ends of a family use; of the others nothing."""


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_keep_every_part_and_only_what_is_tied_twice(family: str) -> None:
    original = made(family)
    assert users(original).shared == SHARED.get(family, set())
    for spans in ([range(1), range(1, 4)], [range(2), range(2, 2), range(2, 4)]):
        parts = [made(family) for _ in spans]
        for number, (part, blocks) in enumerate(zip(parts, spans, strict=True)):
            keep(part, users(part), [blocks], number == 0, number == len(spans) - 1)
        names = [set(part.state_dict()) for part in parts]
        assert set().union(*names) == set(original.state_dict())
        assert sum(map(len, names)) == len(original.state_dict()) + len(SHARED.get(family, ()))
        assert names[0] & names[-1] == SHARED.get(family, set())
        for part in parts:  # questions to it are answered as by the whole
            part.to_empty(device="cpu")
            part.initialise_buffers()
            assert part.example(1).keys() == original.example(1).keys()
            assert (part.tensor_plan(), part.state_shape()) == (original.tensor_plan(), original.state_shape())
            assert (part.publication(), part.head_parameters()) == (original.publication(), original.head_parameters())


def test_a_plugin_whose_loss_picks_values_is_cut_too() -> None:
    spec = importlib.util.spec_from_file_location("zloss", Path(__file__).parent / "example_plugin" / "gpt_zloss.py")
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    words = compose(list(FAMILIES["gpt"])).run.model.model_dump() | {"name": "gpt_zloss"}
    with torch.device("meta"):
        model = plugin.build(plugin.ZLossGpt(**words), DATA)
    assert users(model).shared == {"tokens.weight"}


class Odd(nn.Module):
    """A model of two linear blocks, with whatever a test adds."""

    undivided = None
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.last = nn.Linear(3, 1)
        self.unused = nn.Parameter(torch.zeros(2))
        self.register_buffer("shift", torch.zeros(3))
        self.register_buffer("scale", torch.ones(3))

    def stem(self) -> list[nn.Module]:
        return [self.first]

    def example(self, samples: int) -> dict[str, Tensor]:
        return {"images": torch.zeros(samples, 3)}

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        x: Tensor = self.first(batch["images"]) + self.shift
        return x

    def through(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(x) * self.scale
        return x

    def finish(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.last(x + self.shift)
        return out

    def loss(self, output: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        chosen = output[torch.arange(len(output)) >= 0]
        return chosen.sum(), torch.ones(())


def test_buffers_and_loose_parameters_stand_where_they_are_used() -> None:
    with torch.device("meta"):
        model = Odd()
    found = users(model)
    assert found.shared == {"shift", "scale"}
    assert "unused" in found.head
    assert "unused" not in found.stem
    keep(model, found, [range(1, 2)], first=False, last=False)
    assert set(model.state_dict()) == {"blocks.1.weight", "blocks.1.bias", "scale"}


def test_blocks_that_share_a_parameter_are_refused() -> None:
    with torch.device("meta"):
        model = Odd()
        model.blocks[1].weight = model.blocks[0].weight
    with pytest.raises(ConfigError, match=r"blocks.0.weight"):
        users(model)


# --- halves of a backward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_two_halves_are_the_whole_backward(family: str) -> None:
    model = filled(made(family))
    batch = batch_of(model, 2, 5, 1)
    with torch.no_grad():
        entered = model.through(model.embed(batch), batch, range(2))

    def loss() -> tuple[Tensor, Tensor]:
        x = entered.clone().requires_grad_()
        return x, model.loss(model.finish(model.through(x, batch, range(2, 4)), batch), batch)[0]

    x, total = loss()
    total.backward()
    expected, back = gradients(model), x.grad
    model.zero_grad()
    x, total = loss()
    later = input_half(torch.autograd.graph.get_gradient_edge(total), None, x)
    at_once = gradients(model)
    later()
    assert torch.equal(x.grad, back)  # type: ignore[arg-type]
    assert gradients(model).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in gradients(model).items())
    recurrent = family.startswith(("rnn", "gru", "elmo"))
    assert recurrent or not at_once, "a weight that is used once waits for the second half"
