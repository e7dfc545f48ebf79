"""What every family of text models offers in each of its heads: an example that goes all the way, a true plan, and every part named."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from dml_runner import models
from dml_runner.config import compose
from dml_runner.facts import DataFacts
from dml_runner.models.base import Model, initialise

CLASSES = 3
DATA = DataFacts("labelled_text", 8, 8, None, 16, 50, 16, {}, "", CLASSES)
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
GPT = ("model=gpt", "model.layers=2", "model.hidden=16", "model.heads=2")
LLAMA = ("model.norm=rms", "model.mlp=swiglu", "model.positions=rotary", "model.bias=false", "model.kv_heads=1", "model.tied=false")
BERT = ("model=bert", "model.layers=2", "model.hidden=16", "model.heads=2")
ELMO = ("model=elmo", "model.hidden=16", "model.projection=8", "model.filters=[4,4]")
RNN = ("model=rnn", "model.hidden=16")
FAMILIES = {"gpt": GPT, "llama": (*GPT, *LLAMA), "bert": BERT, "elmo": ELMO, "rnn": RNN, "gru": (*RNN, "model.cell=gru")}
FAMILIES |= {"rnn, own projection": (*RNN, "model.tied=false")}
FAMILIES |= {f"{name} classifier": (*words, *CLASSIFIER) for name, words in FAMILIES.items() if "own" not in name}
HEADS = {
    "gpt": {"norm"},
    "llama": {"norm", "output"},
    "bert": {"transform", "transform_norm", "decoder"},
    "elmo": {"output"},
    "rnn": {"decoder"},
    "gru": {"decoder"},
    "rnn, own projection": {"output"},
    "gpt classifier": {"norm", "classifier"},
    "llama classifier": {"norm", "classifier"},
    "bert classifier": {"pooler", "classifier"},
    "elmo classifier": {"mix", "classifier"},
    "rnn classifier": {"classifier"},
    "gru classifier": {"classifier"},
}
"""The modules behind the last block, of each family."""
every_family = pytest.mark.parametrize("family", FAMILIES)


def made(family: str) -> Model:
    """A small model with starting weights."""
    model = models.build(compose(list(FAMILIES[family])).run.model, DATA)
    initialise(model, 1)
    return model


def numbers(modules: Iterable[nn.Module]) -> list[int]:
    """Which parameters the modules hold, by identity, as often as they do."""
    return [id(parameter) for module in modules for parameter in module.parameters()]


@every_family
def test_the_example_goes_all_the_way(family: str) -> None:
    model = made(family)
    batch = model.example(2)
    assert all(len(tensor) == 2 for tensor in batch.values())
    output = model(batch)
    total, weight = model.loss(output, batch)
    (total / weight).backward()
    assert total.shape == weight.shape == ()
    assert bool(total.isfinite())
    assert all(parameter.grad is not None for parameter in model.parameters())
    guess = model.guess(output, batch)
    assert guess.predicted.shape == guess.targets.shape == (len(guess.targets),)
    assert guess.predicted.dtype == guess.targets.dtype == torch.int64
    directions = 2 if family == "elmo" else 1
    assert len(guess.targets) == directions * int(weight) == directions * (2 if "classifier" in family else 4)
    assert int(guess.predicted.max()) < (CLASSES if "classifier" in family else DATA.vocabulary)


@every_family
def test_the_plan_names_modules_that_are_there(family: str) -> None:
    model = made(family)
    plan, modules = model.tensor_plan(), dict(model.named_modules())
    for number in range(len(model.blocks)):
        found = {name: modules[name.replace("*", str(number))] for name in (*plan.column, *plan.row, *plan.vocabulary, *plan.whole)}
        for name in (*plan.column, *plan.row):
            assert isinstance(found[name], nn.Linear), name
        for name, rows in plan.column.items():
            parts = plan.fused.get(name, (found[name].out_features,))
            assert sum(parts) == found[name].out_features
            assert all(part % rows == 0 for part in parts), name
    assert set(plan.fused) <= set(plan.column)
    assert not {*plan.column, *plan.row, *plan.vocabulary} & set(plan.whole)
    assert all(plan.whole.values()), "what stays whole has its reason"
    assert all({held, borrowed} <= {name for name, _ in model.named_parameters()} for held, borrowed in plan.tied)


@every_family
def test_stem_blocks_and_head_are_the_whole_model(family: str) -> None:
    model = made(family)
    head = [module for name, module in model.named_children() if name in HEADS[family]]
    assert len(head) == len(HEADS[family])
    parts = numbers([*model.stem(), *model.blocks, *head])
    assert len(parts) == len(set(parts)), "a parameter is in two of them"
    assert set(parts) == set(numbers([model]))
    assert 0 <= model.head_parameters() <= sum(parameter.numel() for module in head for parameter in module.parameters())
