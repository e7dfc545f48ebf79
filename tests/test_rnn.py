"""The rnn family: torch's cells, a state that travels from one step to the next and no further back, and it learns and writes."""

from __future__ import annotations

import pytest
import torch
from learning import enlarge, learn
from torch import Tensor, nn

from dml_runner import models
from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.models.base import Batch, initialise, keyed_generator
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.generation import generate, window_start
from dml_runner.models.rnn import Rnn
from dml_runner.planning.shape import measure

VOCABULARY, LENGTH, CLASSES, HIDDEN = 20, 8, 3, 16
DATA = DataFacts("labelled_text", 8, 8, LENGTH, LENGTH, VOCABULARY, LENGTH, {}, "", CLASSES)
SHAPE = ("model=rnn", f"model.hidden={HIDDEN}", f"model.bptt={LENGTH}")
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
LSTM, GRU = (), ("model.cell=gru",)
CELLS: dict[str, tuple[str, ...]] = {"lstm": LSTM, "gru": GRU}
SHAPES = CELLS | {"own projection": ("model.tied=false",), "classifier": CLASSIFIER, "gru classifier": (*GRU, *CLASSIFIER)}
every_cell = pytest.mark.parametrize("words", CELLS.values(), ids=CELLS.keys())
every_shape = pytest.mark.parametrize("words", SHAPES.values(), ids=SHAPES.keys())


def made(*words: str, seed: int = 1) -> Rnn:
    """A small model with starting weights, ready to evaluate."""
    model = build_model(compose([*SHAPE, *words, f"seed={seed}"]).run, DATA, torch.device("cpu"))
    assert isinstance(model, Rnn)
    return model.eval()


def filled(*words: str) -> Rnn:
    """The same with weights large enough that every part shows, biases too."""
    model = made(*words)
    enlarge(model)
    return model


def some_ids(samples: int, length: int = LENGTH) -> Tensor:
    """Token ids, the same at every call."""
    return torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(7))


def some_state(model: Rnn, samples: int) -> Tensor:
    """A state that is not zero."""
    torch.manual_seed(5)
    shape = model.state_shape()
    assert shape is not None
    return torch.randn(samples, *shape).tanh()


# --- shape ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "gates"), [(LSTM, 4), (GRU, 3)], ids=["lstm", "gru"])
def test_counts_are_embedding_and_cells_and_the_head_apart(words: tuple[str, ...], gates: int) -> None:
    for head, added in [
        ((), VOCABULARY),
        (("model.tied=false",), VOCABULARY * (HIDDEN + 1)),
        (CLASSIFIER, CLASSES * (HIDDEN + 1)),
    ]:
        facts = measure(compose([*SHAPE, *words, *head]).run, DATA)
        assert facts.parameters == VOCABULARY * HIDDEN + 2 * gates * HIDDEN * (2 * HIDDEN + 2)
        assert facts.head_parameters == added


def test_more_tokens_or_labels_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size: smaller than the data's vocabulary; got 19; allowed null, or at least 20"):
        made("model.vocab_size=19")
    with pytest.raises(ConfigError, match=r"model\.classes: smaller than the data's labels; got 2; allowed null, or at least 3"):
        made(*CLASSIFIER, "model.classes=2")


@every_shape
def test_the_plan_names_what_is_there(words: tuple[str, ...]) -> None:
    model = made(*words)
    plan, named = model.tensor_plan(), dict(model.named_modules())
    assert all(name.replace("*", "0") in named and reason for name, reason in plan.whole.items())
    assert all(len(p) == VOCABULARY for name in plan.vocabulary for p in named[name].parameters())
    covered = [named[name.replace("*", number)] for name in (*plan.whole, *plan.vocabulary) for number in "01"]
    assert {id(p) for module in covered for p in module.parameters()} == {id(p) for p in model.parameters()}


@every_shape
def test_starting_weights_depend_on_seed_and_name_alone(words: tuple[str, ...]) -> None:
    model, other, deeper = made(*words), made(*words, seed=2), made(*words, "model.layers=3").state_dict()
    direct = models.build(compose([*SHAPE, *words]).run.model, DATA)
    initialise(direct, 1)
    state = model.state_dict()
    assert list(state) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(tensor, direct.state_dict()[name]) and torch.equal(tensor, deeper[name]) for name, tensor in state.items())
    assert not torch.equal(state["tokens.weight"], other.state_dict()["tokens.weight"])
    gates = [0, 0, 0] if GRU[0] in words else [0, 1, 0, 0]
    assert state["blocks.0.cell.bias_ih_l0"].unflatten(0, (-1, HIDDEN))[:, 0].tolist() == gates
    assert not state["blocks.0.cell.bias_hh_l0"].any()


# --- computing -----------------------------------------------------------------------------------------------------------


def stepped(model: Rnn, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer puts out and the state behind it, token by token, with torch's cells."""
    kind = nn.LSTMCell if model.words.cell == "lstm" else nn.GRUCell
    cells = []
    for block in model.blocks:
        cells.append(kind(HIDDEN, HIDDEN))
        cells[-1].load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in block.cell.state_dict().items()})  # type: ignore[union-attr]
    states = [list(layer.unbind(dim=1)) for layer in state.unbind(dim=1)]
    out = []
    for token in ids.unbind(dim=1):
        x = model.tokens(token)
        for number, cell in enumerate(cells):
            states[number] = list(cell(x, tuple(states[number]))) if len(states[number]) == 2 else [cell(x, states[number][0])]
            x = states[number][0]
        out.append(x)
    return torch.stack(out, dim=1), torch.stack([torch.stack(parts, dim=1) for parts in states], dim=1)


@every_cell
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own projection"])
def test_layers_are_torchs_cells(words: tuple[str, ...], tied: bool) -> None:
    model, ids = filled(*words, f"model.tied={str(tied).lower()}"), some_ids(3)
    state = some_state(model, 3)
    batch = {"inputs": ids, "state": state}
    x = model.embed(batch)
    for block in model.blocks:
        x = block(x, batch)
    hidden, end = stepped(model, ids, state)
    torch.testing.assert_close(x[:, :LENGTH], hidden, atol=1e-6, rtol=0)
    output = model(batch)
    torch.testing.assert_close(model.state_of(output), end, atol=1e-6, rtol=0)
    weight, bias = (model.tokens.weight, model.decoder.bias) if model.decoder else (model.output.weight, model.output.bias)  # type: ignore[union-attr]
    torch.testing.assert_close(output.logits, hidden @ weight.T + bias, atol=1e-5, rtol=0)


@every_cell
def test_two_steps_with_the_state_between_are_one_long_step(words: tuple[str, ...]) -> None:
    model, ids = filled(*words).double(), some_ids(3, 2 * LENGTH)
    whole = model({"inputs": ids})
    first = model({"inputs": ids[:, :LENGTH], "first": torch.ones(3, dtype=torch.bool), "state": some_state(model, 3).double()})
    state = model.state_of(first)
    second = model({"inputs": ids[:, LENGTH:], "first": torch.zeros(3, dtype=torch.bool), "state": state})
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), whole.logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.state_of(second), model.state_of(whole), atol=1e-12, rtol=0)
    assert tuple(state.shape) == (3, *(model.state_shape() or ()))
    assert not state.requires_grad
    second.logits.sum().backward()
    gradient = model.tokens.weight.grad
    assert gradient is not None
    model.zero_grad()
    model({"inputs": ids[:, LENGTH:], "state": state.clone()}).logits.sum().backward()
    again = model.tokens.weight.grad
    assert again is not None
    assert torch.equal(gradient, again), "a gradient came from the step before"


@every_cell
def test_a_stream_that_begins_forgets_and_the_others_do_not(words: tuple[str, ...]) -> None:
    model, ids = filled(*words), some_ids(3)
    state = some_state(model, 3)
    state[1] = float("nan")
    output = model({"inputs": ids, "state": state, "first": torch.tensor([False, True, False])})
    fresh = model({"inputs": ids, "first": torch.tensor([False, True, False])})
    carried = model({"inputs": ids[[0, 2]], "state": state[[0, 2]]})
    torch.testing.assert_close(output.logits[1], fresh.logits[1])
    torch.testing.assert_close(output.logits[[0, 2]], carried.logits)
    assert not torch.allclose(carried.logits, fresh.logits[[0, 2]])


def test_no_state_stays_in_the_model() -> None:
    model, ids = filled(), some_ids(2)
    before = model({"inputs": ids})
    model({"inputs": ids, "state": some_state(model, 2)})
    assert torch.equal(model({"inputs": ids}).logits, before.logits)


@every_cell
def test_a_later_token_leaves_earlier_logits_as_they_were(words: tuple[str, ...]) -> None:
    model, ids = filled(*words), some_ids(2)
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % VOCABULARY
    before, after = model({"inputs": ids}).logits, model({"inputs": changed}).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert bool((before[:, 5:] != after[:, 5:]).any(dim=-1).all())


@every_cell
def test_a_classifier_reads_to_the_last_real_token(words: tuple[str, ...]) -> None:
    model, ids, lengths = filled(*words, *CLASSIFIER), some_ids(3), torch.tensor([LENGTH, 1, 5])
    alone = torch.cat([model({"inputs": ids[row : row + 1, :length]}) for row, length in enumerate(lengths)])
    mask = torch.arange(LENGTH + 4) < lengths[:, None]
    torch.testing.assert_close(model({"inputs": ids, "mask": mask[:, :LENGTH]}), alone)
    longer = torch.cat((ids, torch.zeros(3, 4, dtype=torch.int64)), dim=1)
    torch.testing.assert_close(model({"inputs": longer, "mask": mask}), alone)
    assert model.state_shape() is None


# --- learning and writing ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@every_shape
def test_it_learns_eight_samples_by_heart(words: tuple[str, ...]) -> None:
    model, ids = made(*words).train(), some_ids(8, LENGTH + 1)
    classifies = CLASSIFIER[0] in words
    batch = {"inputs": ids[:, :-1], "targets": torch.arange(8) % CLASSES if classifies else ids[:, 1:]}
    losses, weight = learn(model, batch, 90, 5e-2)
    guess = model.guess(model(batch), batch)
    assert weight == (8 if classifies else 8 * LENGTH) == len(guess.targets)
    assert (guess.predicted == guess.targets).double().mean() > 0.97
    assert losses[-1] / weight < 0.3


@every_shape
def test_dropout_and_the_smallest_batch(words: tuple[str, ...]) -> None:
    model = made(*words, "model.dropout=0.5").train()
    example = model.example(2)
    assert len({model.loss(model(example), example)[0].item() for _ in range(3)}) == 3
    model.eval()
    assert len({model.loss(model(example), example)[0].item() for _ in range(3)}) == 1


@every_cell
@pytest.mark.parametrize("prompt", [1, 3 * LENGTH])
def test_a_text_is_read_once_and_has_no_longest_length(words: tuple[str, ...], prompt: int) -> None:
    model, ids = filled(*words), some_ids(1, prompt)[0].tolist()
    seen: list[Tensor] = []
    read: list[int] = []

    def forward(batch: Batch, cache: KeyValueCache) -> Tensor:
        read.extend(batch["inputs"][0].tolist())
        out: Tensor = model(batch, cache)
        assert out.shape == (1, 1, VOCABULARY)
        seen.append(out[0, -1])
        return out

    ids += generate(forward, ids, 4 * LENGTH, context=None, vocabulary=VOCABULARY, generator=keyed_generator("text"))
    assert read == ids[:-1], "a token was read twice, or not at all"
    whole = model({"inputs": torch.tensor([ids[:-1]])})
    torch.testing.assert_close(torch.stack(seen), whole.logits[0, prompt - 1 :], atol=1e-5, rtol=0)


def test_a_cache_that_was_cleared_begins_anew() -> None:
    model, ids, cache = filled(), some_ids(1), KeyValueCache(None)
    first = model({"inputs": ids}, cache)
    assert cache.length == LENGTH
    assert not torch.allclose(model({"inputs": ids}, cache), first)
    cache.clear()
    assert cache.kept(model) is None
    assert torch.equal(model({"inputs": ids}, cache), first)
    assert {window_start(length, None) for length in (1, 10_000)} == {0}


def test_what_stood_before_a_step_is_known_through_the_state_alone() -> None:
    """Every third token repeats the one two before it; where a step begins in between, that one came in the step before."""
    model = made("model.hidden=32").train()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(16):
        marks = torch.randint(1, 4, (16, 41), generator=generator)
        text = torch.stack((marks, torch.zeros_like(marks), marks), dim=2).flatten(1)
        known, unknown, state = [], [], some_state(model, 16)
        for start in range(0, 112, 8):
            batch = {"inputs": text[:, start : start + 8], "targets": text[:, start + 1 : start + 9]}
            batch |= {"state": state, "first": torch.full((16,), start == 0)}
            output = model(batch)
            if start % 3 == 1:
                at_border = {"inputs": batch["inputs"][:, :1], "targets": batch["targets"][:, :1]}
                known.append(model.loss(model({**at_border, "state": state}), at_border)[0].item() / 16)
                unknown.append(model.loss(model(at_border), at_border)[0].item() / 16)
            state = model.state_of(output)
            total, weight = model.loss(output, batch)
            (total / weight).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert max(known) < 0.1
    assert min(unknown) > 1.0
