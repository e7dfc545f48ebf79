"""The elmo family: each direction sees its side alone and never padding, cells and filters are as published, and it learns."""

from __future__ import annotations

import math

import pytest
import torch
from learning import enlarge, learn
from torch import Tensor, nn

from dml_runner import models
from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.models.base import Model, freeze, initialise
from dml_runner.models.elmo import Elmo, Output, mean_of
from dml_runner.models.parts.character_cnn import CharacterCnn, Highway
from dml_runner.models.parts.characters import BEGIN_WORD, END_WORD, PADDING
from dml_runner.models.parts.lstm import ProjectedLstm, turned
from dml_runner.planning.shape import measure

WORDS, LENGTH, WORD_LENGTH, CLASSES, WIDTH = 30, 7, 9, 3, 12
DATA = DataFacts("labelled_text", 8, 8, None, LENGTH, WORDS, LENGTH, {}, "", CLASSES)
SHAPE = (
    "model=elmo",
    "model.hidden=24",
    f"model.projection={WIDTH}",
    "model.characters=6",
    "model.filters=[4,6,8]",
    f"model.word_length={WORD_LENGTH}",
    f"model.context={LENGTH}",
)
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
HEADS: list[tuple[str, ...]] = [(), CLASSIFIER]
every_head = pytest.mark.parametrize("words", HEADS, ids=["lm", "classifier"])


def made(*words: str, seed: int = 1) -> Elmo:
    """A small model with starting weights, ready to evaluate."""
    model = build_model(compose([*SHAPE, *words, f"seed={seed}"]).run, DATA, torch.device("cpu"))
    assert isinstance(model, Elmo)
    return model.eval()


def filled(*words: str) -> Elmo:
    """The same with weights large enough that every part shows, biases too."""
    model = made(*words)
    enlarge(model)
    return model


def texts(samples: int, length: int = LENGTH) -> Tensor:
    """Characters of made-up words of 1 to 7 letters, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    letters = torch.randint(97, 123, (samples, length, WORD_LENGTH), generator=generator)
    ends = torch.randint(2, WORD_LENGTH, (samples, length, 1), generator=generator)
    places = torch.arange(WORD_LENGTH)
    characters = torch.where(places < ends, letters, PADDING).masked_fill(places == ends, END_WORD)
    return characters.masked_fill(places == 0, BEGIN_WORD)


def batch_of(words: tuple[str, ...], samples: int) -> dict[str, Tensor]:
    """A batch for the head of ``words``."""
    characters = texts(samples)
    if words:
        return {"characters": characters, "targets": torch.arange(samples) % CLASSES}
    ids = torch.randint(0, WORDS, (samples, LENGTH + 2), generator=torch.Generator().manual_seed(8))
    return {"characters": characters, "targets": ids[:, 2:].clone(), "before": ids[:, :-2].clone()}


def padded(batch: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    """The batch with ``more`` words of padding behind its texts; a second sample loses three words too."""
    samples = len(batch["characters"])
    full = torch.full((samples, more, WORD_LENGTH), PADDING)
    characters = torch.cat((batch["characters"], full), dim=1)
    lengths = torch.full((samples, 1), LENGTH)
    lengths[1] -= 3
    mask = torch.arange(LENGTH + more) < lengths
    return {"characters": characters.where(mask[..., None], torch.tensor(PADDING)), "mask": mask}


# --- shape ---------------------------------------------------------------------------------------------------------------


def test_the_published_size_has_the_published_count() -> None:
    """93.6 M: 262 characters 16 wide, 2,048 filters, 2 highways, and 2 x 2 cells with one bias each."""
    filters = sum(count * (16 * size + 1) for size, count in enumerate((32, 32, 64, 128, 256, 512, 1024), start=1))
    cell = 4 * 4096 * (512 + 512 + 1) + 512 * 4096
    facts = measure(compose(["model=elmo_original"]).run, DATA)
    assert facts.parameters == 262 * 16 + filters + 2 * 4096 * (2048 + 1) + 512 * (2048 + 1) + 4 * cell == 93_600_864
    assert facts.head_parameters == 793_471 * (512 + 1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("model.word_length=2",), "model.word_length: shorter than the widest of model.filters; got 2; allowed at least 3"),
        (("model.projection=24",), "model.projection: does not narrow what a cell puts out; got 24; allowed below model.hidden, 24"),
        (("model.filters=[]",), "model.filters: none, and a word is made of what they find; got []; allowed a number for each width"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose([*SHAPE, *words])
    assert line in str(refused.value).splitlines()


def test_more_labels_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.classes: smaller than the data's labels; got 2; allowed null, or at least 3"):
        made(*CLASSIFIER, "model.classes=2")


@every_head
def test_the_plan_names_what_is_there(words: tuple[str, ...]) -> None:
    model = made(*words)
    plan, named = model.tensor_plan(), dict(model.named_modules())
    assert all(name.replace("*", "0") in named and reason for name, reason in plan.whole.items())
    assert all(len(p) == WORDS for name in plan.vocabulary for p in named[name].parameters())
    covered = [named[name.replace("*", number)] for name in (*plan.whole, *plan.vocabulary) for number in "01"]
    assert {id(p) for module in covered for p in module.parameters()} == {id(p) for p in model.parameters()}


@every_head
def test_starting_weights_depend_on_seed_and_name_alone(words: tuple[str, ...]) -> None:
    """On the way from the meta device too; a deeper model begins like a shallow one; nothing but parameters is saved."""
    model, other = made(*words), made(*words, seed=2)
    direct = models.build(compose([*SHAPE, *words]).run.model, DATA)
    initialise(direct, 1)
    state, deeper = model.state_dict(), made(*words, "model.layers=3").state_dict()
    assert list(state) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(tensor, direct.state_dict()[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, deeper[name]) for name, tensor in state.items() if name != "mix.weights")
    assert not torch.equal(state["blocks.0.back.weight_hh_l0"], other.state_dict()["blocks.0.back.weight_hh_l0"])
    assert state["blocks.0.onward.bias_ih_l0"].unflatten(0, (4, -1))[:, 0].tolist() == [0, 1, 0, 0]
    assert state["words.highways.0.both.bias"].unflatten(0, (2, -1))[:, 0].tolist() == [0, -2]
    assert not any(buffer.any() for buffer in model.buffers())


# --- computing -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_word_is_what_a_plain_loop_makes_of_its_characters() -> None:
    torch.manual_seed(0)
    cnn = CharacterCnn(6, (4, 6, 8), 2, WIDTH).double()
    characters = texts(2, 3)
    expected = torch.empty(2, 3, WIDTH, dtype=torch.float64)
    for sample in range(2):
        for place in range(3):
            word = [cnn.characters.weight[character] for character in characters[sample, place]]
            found = []
            for size, convolution in enumerate(cnn.convolutions, start=1):
                assert isinstance(convolution, nn.Conv1d)
                for weight, bias in zip(convolution.weight, convolution.bias, strict=True):  # type: ignore[arg-type]
                    windows = [torch.stack(word[start : start + size], dim=1) for start in range(WORD_LENGTH - size + 1)]
                    found.append(max(max(0.0, float((window * weight).sum() + bias)) for window in windows))
            x = torch.tensor(found, dtype=torch.float64)
            for highway in cnn.highways:
                assert isinstance(highway, Highway)
                (transform, gate), (start, opening) = highway.both.weight.chunk(2), highway.both.bias.chunk(2)
                share = 1 / (1 + torch.exp(-(gate @ x + opening)))
                x = share * (transform @ x + start).clamp(min=0) + (1 - share) * x
            expected[sample, place] = cnn.projection.weight @ x + cnn.projection.bias
    torch.testing.assert_close(cnn(characters), expected, atol=1e-12, rtol=0)


def stepped(lstm: ProjectedLstm, x: Tensor) -> Tensor:
    """What a layer puts out, word by word, with torch's cell and the projection by hand: what returns is filled up with zeros."""
    hidden = lstm.hidden_size
    cell = nn.LSTMCell(x.shape[2], hidden, dtype=x.dtype)
    weights = dict(lstm.named_parameters())
    with torch.no_grad():
        cell.weight_ih.copy_(weights["weight_ih_l0"])
        cell.weight_hh.zero_()[:, : lstm.proj_size] = weights["weight_hh_l0"]
        cell.bias_ih.copy_(weights["bias_ih_l0"])
        cell.bias_hh.zero_()
    out, projected, memory = [], x.new_zeros(len(x), lstm.proj_size), x.new_zeros(len(x), hidden)
    for word in x.unbind(dim=1):
        padded_state = torch.cat((projected, x.new_zeros(len(x), hidden - lstm.proj_size)), dim=1)
        put_out, memory = cell(word, (padded_state, memory))
        projected = put_out @ weights["weight_hr_l0"].T
        out.append(projected)
    return torch.stack(out, dim=1)


def test_layers_are_torchs_cells_with_a_projection() -> None:
    """In fp64: in fp32 sums of this size differ in their seventh digit by the order in which they are taken."""
    model = filled(*CLASSIFIER).double()
    x = torch.randn(3, 1, LENGTH, 2 * WIDTH, dtype=torch.float64)
    layers = x
    for block in model.blocks:
        layers = block(layers, {})
    first, second = model.blocks
    onward, back = x[:, 0].chunk(2, dim=-1)
    onward, back = stepped(first.onward, onward), stepped(first.back, back.flip(1)).flip(1)  # type: ignore[arg-type]
    torch.testing.assert_close(layers[:, 1], torch.cat((onward, back), dim=-1), atol=1e-12, rtol=0)
    onward, back = onward + stepped(second.onward, onward), back + stepped(second.back, back.flip(1)).flip(1)  # type: ignore[arg-type]
    torch.testing.assert_close(layers[:, 2], torch.cat((onward, back), dim=-1), atol=1e-12, rtol=0)
    assert torch.equal(layers[:, 0], x[:, 0])


def test_a_word_reaches_one_side_of_each_direction() -> None:
    model, batch, changed = filled(), batch_of((), 2), batch_of((), 2)
    changed["characters"][:, 4, 1] += 1
    with torch.no_grad():
        one, other = model(batch), model(changed)
    assert isinstance(one, Output)
    assert torch.equal(one.after[:, :4], other.after[:, :4])
    assert torch.equal(one.before[:, 5:], other.before[:, 5:])
    assert bool((one.after[:, 4:] != other.after[:, 4:]).any(dim=-1).all())
    assert bool((one.before[:, :5] != other.before[:, :5]).any(dim=-1).all())


@every_head
def test_padding_is_seen_by_nothing(words: tuple[str, ...]) -> None:
    model, batch = filled(*words), batch_of(words, 3)
    one, other = padded(batch, 0), padded(batch, 5)
    alone = {"characters": batch["characters"][1:2, : LENGTH - 3]}
    with torch.no_grad():
        if words:
            torch.testing.assert_close(model(other), model(one), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(model(other)[1:2], model(alone), atol=1e-6, rtol=1e-5)
            return
        for more, less, single in zip(model(other), model(one), model(alone), strict=True):
            real = one["mask"]
            torch.testing.assert_close(more[:, :LENGTH][real], less[real], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(more[1:2, : LENGTH - 3], single, atol=1e-6, rtol=1e-5)


def test_turned_twice_is_as_before() -> None:
    x, mask = torch.arange(10).view(2, 5, 1), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert turned(x, mask).flatten(1).tolist() == [[4, 3, 2, 1, 0], [7, 6, 5, 8, 9]]
    assert torch.equal(turned(turned(x, mask), mask), x)
    assert torch.equal(turned(x, None), x.flip(1))


def test_the_mix_weighs_layers_and_the_mean_real_words() -> None:
    model = made(*CLASSIFIER)
    assert model.mix is not None
    x = torch.randn(2, 3, LENGTH, 2 * WIDTH)
    torch.testing.assert_close(model.mix(x), x.mean(dim=1))
    with torch.no_grad():
        model.mix.weights.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
        model.mix.scale.fill_(3.0)
    torch.testing.assert_close(model.mix(x), 3 * (x[:, 0] + 2 * x[:, 1] + 5 * x[:, 2]) / 8)
    mask = torch.arange(LENGTH) < torch.tensor([[2], [0]])
    torch.testing.assert_close(mean_of(x[:, 0], mask), torch.stack((x[0, 0, :2].mean(dim=0), torch.zeros(2 * WIDTH))))


def test_the_loss_is_the_mean_of_both_directions_over_the_words() -> None:
    model, batch = filled(), batch_of((), 2)
    batch["targets"][1, 5:] = batch["before"][1, 5:] = -100
    output = model(batch)
    total, words = model.loss(output, batch)
    expected = 0.0
    for logits, name in zip(output, ("targets", "before"), strict=True):
        chances = logits.detach().log_softmax(dim=-1)
        real = [(sample, word) for sample in range(2) for word in range(5 if sample else LENGTH)]
        expected -= sum(chances[sample, word, batch[name][sample, word]].item() for sample, word in real) / 2
    assert words == LENGTH + 5
    assert total.item() == pytest.approx(expected, rel=1e-6)
    guess = model.guess(output, batch)
    assert len(guess.predicted) == len(guess.targets) == 2 * (LENGTH + 5)


def test_words_beyond_its_vocabulary_count_as_the_unknown_one() -> None:
    """The words come by their frequency, so that those left out are the rarest; what is not predicted stays so."""
    model, batch = filled("model.vocab_size=10"), batch_of((), 2)
    batch["targets"][0, :4] = batch["before"][1, 3:] = torch.tensor([9, 10, WORDS - 1, -100])
    merged = {**batch, **{name: batch[name].masked_fill(batch[name] > 9, 0) for name in ("targets", "before")}}
    output = model(batch)
    assert isinstance(output, Output)
    assert output.after.shape == output.before.shape == (2, LENGTH, 10)
    assert merged["targets"][0, :4].tolist() == merged["before"][1, 3:].tolist() == [9, 0, 0, -100]
    assert all(map(torch.equal, model.loss(output, batch), model.loss(output, merged)))
    assert all(map(torch.equal, model.guess(output, batch), model.guess(output, merged)))
    assert int(model.guess(output, batch).targets.max()) == 9
    assert model.guess(output, batch).targets.shape == (4 * LENGTH - 2,)
    assert torch.equal(batch["targets"][0, :4], torch.tensor([9, 10, WORDS - 1, -100])), "the batch was changed"
    assert made(*CLASSIFIER, "model.vocab_size=10").classifier.out_features == CLASSES


# --- learning ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@every_head
def test_it_learns_eight_samples_by_heart(words: tuple[str, ...]) -> None:
    model, batch = made(*words).train(), batch_of(words, 8)
    losses, weight = learn(model, batch, 80, 2e-2)
    guess = model.guess(model(batch), batch)
    assert (guess.predicted == guess.targets).double().mean() > 0.97
    assert losses[-1] / weight < 0.2


@every_head
def test_dropout_and_the_smallest_batch(words: tuple[str, ...]) -> None:
    model: Model = made(*words, "model.dropout=0.5").train()
    example = model.example(2)
    losses = {model.loss(model(example), example)[0].item() for _ in range(3)}
    assert len(losses) == 3
    model.eval()
    assert len({model.loss(model(example), example)[0].item() for _ in range(3)}) == 1


def test_frozen_words_and_layers_get_no_gradient() -> None:
    model, batch = made(*CLASSIFIER), batch_of(CLASSIFIER, 2)
    freeze(model, 1)
    model.loss(model(batch), batch)[0].backward()
    trained = {name.split(".")[0] + name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"blocks1", "mixweights", "mixscale", "classifierweight", "classifierbias"}
