"""Layers split over ranks: loss, gradients and a step are those of the whole model, bytes those of the law, and dropout the plan's.

Every rank computes the whole model too, and compares what it holds with its part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import in_group
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml_runner import models
from dml_runner.comm.counter import Sent
from dml_runner.comm.laws import traffic
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.config import compose
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, TensorFact, TensorPlan
from dml_runner.models.base import Model
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.generation import generate
from dml_runner.parallel.held import Held
from dml_runner.parallel.shared import add_up
from dml_runner.parallel.tensor.apart import OwnDraws
from dml_runner.parallel.tensor.divide import Divided, divide
from dml_runner.tensor_rules import notes, part_of, pattern_of, refusals

VOCABULARY, CONTEXT, CLASSES, HIDDEN, BATCH = 50, 16, 3, 48, 3
DEGREES = (2, 3, 4)
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
WIDE = ("model.layers=2", f"model.hidden={HIDDEN}", "model.heads=24", f"model.context={CONTEXT}", "model.ffn_hidden=36")
GPT, BERT = ("model=gpt", *WIDE), ("model=bert", *WIDE)
LLAMA = (*GPT, "model.mlp=swiglu", "model.norm=rms", "model.positions=rotary", "model.bias=false", "model.kv_heads=12", "model.tied=false")
RNN = ("model=rnn", "model.layers=2", "model.hidden=8")
ELMO = ("model=elmo", "model.layers=2", "model.hidden=6", "model.projection=4", "model.filters=[4,4]", "model.word_length=8")
CASES = {
    "gpt": GPT,
    "gpt untied": (*GPT, "model.tied=false"),
    "llama": LLAMA,
    "gpt classifier": (*GPT, *CLASSIFIER),
    "bert": (*BERT, "model.kv_heads=12"),
    "bert classifier": (*BERT, *CLASSIFIER),
    "rnn": RNN,
    "rnn untied": (*RNN, "model.tied=false"),
    "elmo": ELMO,
}
MIXED = (*ELMO, *CLASSIFIER)
IN_PARTS = [case for case in CASES if case not in ("rnn", "rnn untied", "elmo")]
LENGTHS = (9, 3)
"""Positions of a text: neither is divided evenly by every degree, and of three one rank of four has none."""
close = partial(torch.allclose, rtol=1e-10, atol=1e-10)


# --- models --------------------------------------------------------------------------------------------------------------


SECTIONS: dict[tuple[str, ...], Any] = {}
"""The model's section of the words; read once, and handed to the ranks: to read words takes longer than a step."""


def sections() -> dict[tuple[str, ...], Any]:
    """``SECTIONS`` of all cases."""
    SECTIONS.update({words: compose(words).run.model for words in CASES.values() if words not in SECTIONS})
    return SECTIONS


def built(words: tuple[str, ...], dropout: float, layers: int) -> Model:
    """A model in fp64 without values."""
    data = DataFacts("labelled_text", 8, 8, None, CONTEXT, VOCABULARY, CONTEXT, {}, "", CLASSES)
    return models.build(sections()[words].model_copy(update={"dropout": dropout, "layers": layers}), data).double()


def whole_of(words: tuple[str, ...], dropout: float = 0.0, layers: int = 2) -> Model:
    """A model in fp64 whose every part shows."""
    model = built(words, dropout, layers)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    model.initialise_buffers()
    return model


def divided_of(words: tuple[str, ...], links: Links, in_parts: bool, dropout: float = 0.0, layers: int = 2) -> tuple[Model, Divided]:
    """The share of the same model that a rank holds: built without memory, divided, then filled."""
    whole = dict(whole_of(words, dropout, layers).named_parameters())
    with torch.device("meta"):
        model = built(words, dropout, layers)
    divided = divide(model, model.tensor_plan(), links, in_parts)
    model.to_empty(device="cpu")
    model.initialise_buffers()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(share(divided.held, name, whole[name]))
    return model, divided


def share(held: Mapping[str, Held], name: str, whole: Tensor) -> Tensor:
    """The part of a tensor like parameter ``name`` that is held."""
    if name not in held:
        return whole
    last = held[name].boxes[-1]
    ends = [place + length for place, length in zip(last.places, last.shape, strict=True)]
    part = whole.new_empty(ends)
    held[name].fill(part, whole)
    return part


def batch_of(words: tuple[str, ...], length: int) -> dict[str, Tensor]:
    """Three texts, the second padded; nothing is predicted at some positions."""
    generator = torch.Generator().manual_seed(7)
    draw = partial(torch.randint, 0, generator=generator)
    targets = draw(VOCABULARY, (BATCH, length))
    targets[:, 1] = -100 if "model=elmo" not in words else 1
    batch = {"targets": draw(CLASSES, (BATCH,)) if set(CLASSIFIER) <= set(words) else targets}
    if "model=elmo" in words:
        return batch | {"characters": draw(200, (BATCH, length, 8)), "before": draw(VOCABULARY, (BATCH, length))}
    batch["inputs"] = draw(VOCABULARY, (BATCH, length))
    if "model=bert" in words or batch["targets"].dim() == 1:
        batch["mask"] = torch.arange(length) < torch.tensor([[length], [2], [length]])
    return batch


def step(model: Model, batch: Mapping[str, Tensor], after: Callable[[], None] = lambda: None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients, and one step of SGD."""
    total, weight = model.loss(model(batch), batch)
    (total / weight).backward()
    after()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return total.detach() / weight, gradients


def complete(model: Model, divided: Divided, links: Links) -> None:
    """Sum over the ranks what each has a part of."""
    add_up(links, [parameter for name, parameter in model.named_parameters() if name in divided.partial], "backend")


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Names under which the two differ."""
    if list(found) != list(expected):
        yield "names"
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape or not close(found[name], tensor):
            yield name


# --- what every rank does --------------------------------------------------------------------------------------------------


def compare(case: str, links: Links, in_parts: bool, length: int) -> list[str]:
    """What of a divided model differs from the whole one."""
    batch, whole = batch_of(CASES[case], length), whole_of(CASES[case])
    model, divided = divided_of(CASES[case], links, in_parts)
    guesses = [each.guess(each(batch), batch) for each in (whole, model)]
    loss, gradients = step(whole, batch)
    found, own = step(model, batch, partial(complete, model, divided, links))
    wrong = [] if close(found, loss) else [f"loss {found} for {loss}"]
    wrong += [] if all(torch.equal(*pair) for pair in zip(*guesses, strict=True)) else ["guess"]
    wrong += [f"gradient {name}" for name in differences(own, {name: share(divided.held, name, g) for name, g in gradients.items()})]
    after = {name: share(divided.held, name, parameter.detach()) for name, parameter in whole.named_parameters()}
    return wrong + [f"step {name}" for name in differences({name: p.detach() for name, p in model.named_parameters()}, after)]


def parity(links: Links) -> dict[tuple[Any, ...], list[str]]:
    """What differs, by case, form and length."""
    found: dict[tuple[Any, ...], list[str]] = {(case, False, LENGTHS[0]): compare(case, links, False, LENGTHS[0]) for case in CASES}
    found |= {(case, True, length): compare(case, links, True, length) for case in IN_PARTS for length in LENGTHS}
    return found


def generation(links: Links) -> dict[str, list[str]]:
    """Logits and texts by a cache, of the divided model and of the whole one."""
    found: dict[str, list[str]] = {}
    for case, in_parts in (("gpt", False), ("llama", True), ("rnn", False)):
        whole, (model, _) = whole_of(CASES[case]).eval(), divided_of(CASES[case], links, in_parts)
        prompt = {"inputs": torch.tensor([[3, 1, 4]])}
        logits = [each.eval()(prompt, KeyValueCache(CONTEXT)) for each in (whole, model)]
        draw: dict[str, Any] = {"context": CONTEXT, "vocabulary": VOCABULARY, "generator": torch.Generator(), "temperature": 0.0}
        texts = [generate(each, [3, 1, 4], 20, **draw) for each in (whole, model)]
        found[case] = [] if close(*logits) and texts[0] == texts[1] else [f"{logits} {texts}"]
    return found


def block_bytes(links: Links, in_parts: bool, kind: torch.dtype = torch.float64) -> tuple[int, int]:
    """Bytes this rank sends in a block's forward and in its backward, of texts of 12 positions."""
    model, _ = divided_of(LLAMA, links, in_parts, layers=3)  # its middle block takes and returns parts
    block, batch = model.blocks[1], batch_of(LLAMA, 12)
    x = torch.randn(BATCH, 12 // links.size if in_parts else 12, HIDDEN, dtype=torch.float64, requires_grad=True)
    if kind != torch.float64:
        block, x = block.float(), x.detach().float().requires_grad_()
    links.sent.take()
    with torch.autocast("cpu", kind, enabled=kind == torch.bfloat16):
        out = block(x, batch)
    forward = links.sent.take()
    out.sum().backward()
    return forward, links.sent.take()


def dropped(links: Links, in_parts: bool) -> list[str]:
    """What is wrong with a step with dropout."""
    wrong, batch, states, found = [], batch_of(LLAMA, 9), [], []
    for recomputed in (False, True):
        model, divided = divided_of(LLAMA, links, in_parts, dropout=0.3, layers=3)
        if recomputed:
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        torch.manual_seed(11)
        found.append(step(model.train(), batch, partial(complete, model, divided, links)))
        states.append(torch.get_rng_state())
        wrong += [f"{name} differs" for name, gradient in found[-1][1].items() if name not in divided.held and not same(links, gradient)]
    if not all(torch.equal(found[0][1][name], gradient) for name, gradient in found[1][1].items()):
        wrong.append("gradients with recomputation")
    if not torch.equal(*states) or not same(links, states[0]):
        wrong.append("the state of the common generator")
    return wrong


class Noisy(nn.Module):
    """A column and a row layer, and dropout before, between and behind them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dropout = 0.5
        self.up = nn.Linear(hidden, hidden, bias=False)
        self.down = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same shape; keeps what it dropped."""
        drop = partial(torch.nn.functional.dropout, p=self.dropout, training=self.training)
        before = drop(torch.ones_like(x))
        self.inside = drop(torch.ones_like(self.up(x)))
        out: Tensor = self.down(self.inside)
        self.outside = torch.stack((before, drop(torch.ones_like(out))))
        return out


def masks(links: Links) -> list[str]:
    """Whether masks are the same where nothing is divided, and others where something is; nothing is drawn in evaluation."""
    model = nn.Sequential()
    model.add_module("blocks", nn.Sequential(nn.ModuleDict({"mlp": Noisy(48)})))
    divide(model, TensorPlan(column={"blocks.*.mlp.up": 1}, row=("blocks.*.mlp.down",)), links)
    noisy: Any = model.get_submodule("blocks.0.mlp")
    torch.manual_seed(5)
    noisy(torch.ones(2, 3, 48))
    wrong = [] if same(links, noisy.outside) else ["outside"]
    wrong += ["inside"] if same(links, noisy.inside) else []
    wrong += [] if same(links, torch.get_rng_state()) else ["generator"]
    state = torch.get_rng_state()
    noisy.eval()(torch.ones(2, 3, 48))
    return wrong + ([] if torch.equal(state, torch.get_rng_state()) else ["drawn in evaluation"])


def same(links: Links, tensor: Tensor) -> bool:
    """Whether all ranks hold the same bits."""
    rows = [torch.empty_like(tensor) for _ in range(links.size)]
    dist.all_gather(rows, tensor.contiguous(), group=links.group)
    return all(torch.equal(row, rows[0]) for row in rows)


def everything(world: World, read: Mapping[tuple[str, ...], Any]) -> dict[int, dict[str, Any]]:
    """All of the above on the first 2, 3 and 4 ranks."""
    SECTIONS.update(read)
    found: dict[int, dict[str, Any]] = {}
    for degree in DEGREES:
        group = dist.new_group(list(range(degree)), timeout=timedelta(seconds=60))
        if world.rank < degree:
            links = Links(group, Sent())
            found[degree] = {"parity": parity(links), "generation": generation(links), "masks": masks(links)}
            found[degree] |= {"dropped": dropped(links, False), "dropped in parts": dropped(links, True)}
            found[degree] |= {"bytes": block_bytes(links, False), "bytes in parts": block_bytes(links, True)}
            found[degree]["narrow bytes"] = block_bytes(links, False, torch.bfloat16)
    return found


# --- tests -----------------------------------------------------------------------------------------------------------------


Found = list[dict[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What four ranks found."""
    return in_group(4, everything, tmp_path_factory.mktemp("ranks"), sections())


def all_of(found: Found, what: str) -> dict[tuple[int, int], Any]:
    """By degree and rank."""
    return {(degree, rank): rows[degree][what] for rank, rows in enumerate(found) for degree in DEGREES if degree in rows}


@pytest.mark.parametrize("case", CASES)
def test_a_divided_model_is_the_whole_model(found: Found, case: str) -> None:
    for place, cases in all_of(found, "parity").items():
        wrong = {key: differing for key, differing in cases.items() if key[0] == case and differing}
        assert not wrong, f"(degree, rank) {place}: {wrong}"


def test_a_divided_model_writes_what_the_whole_one_does(found: Found) -> None:
    assert not {place: each for place, each in all_of(found, "generation").items() if any(each.values())}


@pytest.mark.parametrize("degree", DEGREES)
def test_a_block_sums_twice_each_way(found: Found, degree: int) -> None:
    for rank in range(degree):
        once = [traffic("all_reduce", "ring", BATCH * 12 * HIDDEN, width, degree).sent[rank] for width in (8, 2)]
        assert found[rank][degree]["bytes"] == (2 * once[0], 2 * once[0])
        assert found[rank][degree]["bytes in parts"] == (2 * once[0], 2 * once[0])
        assert found[rank][degree]["narrow bytes"] == (2 * once[1], 2 * once[1])


@pytest.mark.parametrize("what", ["masks", "dropped", "dropped in parts"])
def test_dropout_is_common_outside_and_a_ranks_own_inside(found: Found, what: str) -> None:
    assert not {place: each for place, each in all_of(found, what).items() if each}


def test_own_draws_begin_at_the_common_ones_and_leave_them_as_they_were() -> None:
    drawn: dict[int, tuple[Tensor, Tensor]] = {}
    for rank in (0, 1, 0):
        torch.manual_seed(2)
        draws = OwnDraws(rank)
        draws.start(torch.device("cpu"))
        inside = torch.rand(4)
        draws.stop()
        again = drawn.setdefault(rank, (inside, torch.rand(4)))
        assert torch.equal(again[0], inside)
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


@pytest.mark.parametrize("case", CASES)
def test_parts_cover_every_parameter_once(case: str) -> None:
    model = whole_of(CASES[case])
    for name, parameter in model.named_parameters():
        for degree in DEGREES:
            counted, plan, shape = torch.zeros(parameter.shape), model.tensor_plan(), tuple(parameter.shape)
            parts = [part_of(plan, name, shape, rank, degree) for rank in range(degree)]
            for part in [part for part in parts if part is not None]:
                for first, count in part.runs:
                    counted.narrow(part.dimension, first, count).add_(1)
            divided = pattern_of(name).rpartition(".")[0] in (*plan.column, *plan.vocabulary) or name.endswith(
                ("out.weight", "down.weight")
            )
            assert bool((counted == (1 if divided else 0)).all()), name


def test_what_cannot_be_divided_is_refused_by_name() -> None:
    def refused(words: tuple[str, ...], degree: int, in_parts: bool = False) -> list[str]:
        model = whole_of(words)
        facts = [TensorFact(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
        return [str(problem) for problem in refusals(model.tensor_plan(), degree, facts, "strategy.degree", in_parts)]

    SECTIONS[MIXED] = compose(MIXED).run.model
    assert all(not refused(words, degree, case in IN_PARTS) for case, words in CASES.items() for degree in (1, *DEGREES))
    assert refused(LLAMA, 8) == [
        "strategy.degree: does not divide the 12 groups of rows that stay together (heads) of blocks.*.attention.qkv; got 8; "
        "allowed 1, 2, 3, 4, 6, 12",
        "strategy.degree: does not divide the 36 rows of blocks.*.mlp.gate; got 8; allowed 1, 2, 3, 4, 6, 9, 12, 18, 36",
        "strategy.degree: does not divide the 36 rows of blocks.*.mlp.up; got 8; allowed 1, 2, 3, 4, 6, 9, 12, 18, 36",
        "strategy.degree: does not divide the 36 columns of blocks.*.mlp.down; got 8; allowed 1, 2, 3, 4, 6, 9, 12, 18, 36",
    ]
    [nothing] = refused(MIXED, 2)
    assert nothing.startswith("strategy.degree: no layer of this model can be split (words: makes a word of few numbers")
    assert refused(RNN, 51) == [
        f"strategy.degree: more ranks than {module} has tokens; got 51; allowed 1 to 50" for module in ("tokens", "decoder")
    ]
    assert refused(RNN, 2, in_parts=True) == [
        "strategy.sequence_parallel: no block of this model is split, so none is divided by position; got true; allowed false"
    ]


def test_what_stays_whole_is_told() -> None:
    assert list(notes(whole_of(RNN).tensor_plan())) == [
        "blocks.*.cell stays whole on every rank: a step needs the whole output of the step before, so ranks would talk once a token"
    ]
    assert not list(notes(whole_of(GPT).tensor_plan()))


def test_a_plan_that_names_layers_apart_is_refused() -> None:
    plan = TensorPlan(column={"blocks.*.up": 1}, row=("blocks.*.mlp.down",))
    said = [problem.what for problem in refusals(plan, 2, (), "strategy.degree")]
    assert [what.partition(" must stand together in a module of their own")[0] for what in said] == ["column and row layers"] * 2


def test_tokens_without_scores_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("tokens", nn.Embedding(8, 4))
    with pytest.raises(ConfigError, match="model: its tokens are divided over ranks, but it has no `scores`"):
        divide(model, TensorPlan(vocabulary=("tokens",)), Links(None, Sent()))
