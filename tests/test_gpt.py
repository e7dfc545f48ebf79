"""The gpt family: every shape is causal, learns, and writes with a cache what it would write without; sizes are as published."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import read, small, train
from learning import learn
from torch import Tensor

import dml_runner
from dml_runner import models
from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.models.base import initialise, keyed_generator
from dml_runner.models.gpt import Gpt
from dml_runner.models.parts.attention import CausalSelfAttention
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.generation import draw, generate, window_start
from dml_runner.models.parts.rotary import Rotary
from dml_runner.planning.shape import measure
from dml_runner.run import Run

VOCABULARY, CONTEXT = 50, 16
DATA = DataFacts("tokens", 8, 8, CONTEXT, CONTEXT, VOCABULARY, CONTEXT, {}, "")
LLAMA = ("model.kv_heads=2", "model.norm=rms", "model.mlp=swiglu", "model.positions=rotary", "model.bias=false", "model.tied=false")
SHAPES = [(), *((word,) for word in LLAMA), LLAMA, ("model.norm=rms", "model.bias=true", "model.mlp=swiglu", "model.kv_heads=1")]
every_shape = pytest.mark.parametrize("words", SHAPES, ids=lambda words: ",".join(word.split(".")[1] for word in words) or "default")


@cache
def run_of(*words: str) -> Run:
    """A job whose model has 2 layers and 4 heads."""
    return compose(["model=gpt_tiny", "model.heads=4", f"model.context={CONTEXT}", *words]).run


def gpt(*words: str, seed: int = 1) -> Gpt:
    """The model of ``run_of`` with starting weights, ready to evaluate."""
    model = models.build(run_of(*words).model, DATA)
    initialise(model, seed)
    assert isinstance(model, Gpt)
    return model.eval()


def some_ids(samples: int, length: int = CONTEXT) -> Tensor:
    """Token ids, the same at every call."""
    return torch.randint(0, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(7))


# --- shape ---------------------------------------------------------------------------------------------------------------


def test_the_default_shape_starts_from_the_same_weights_as_ever() -> None:
    facts = DataFacts("tokens", 8, 8, 16, 16, 100, 16, {}, "")
    model = models.build(compose(["model=gpt_tiny"]).run.model, facts)
    initialise(model, 1)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + parameter.detach().numpy().tobytes())
    assert digest.hexdigest() == "0bbead3d38205b0d26776296d6f0a0cd66e154d6f03b376572eb4cb67dea4210"


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("gpt2_124m", 124_439_808),
        ("gpt2_355m", 354_823_168),
        ("gpt2_774m", 774_030_080),
        ("gpt2_1558m", 1_557_611_200),
        ("gpt3_175b", 174_604_259_328),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3_405b", 405_853_388_800),
    ],
)
def test_a_published_size_has_the_published_count(size: str, parameters: int) -> None:
    assert measure(compose([f"model={size}"]).run, DATA).parameters == parameters


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.kv_heads=3"], "model.kv_heads: does not divide model.heads; got 3; allowed a divisor of 4"),
        (["model.hidden=20", "model.positions=rotary"], "model.positions: rotary positions turn pairs, and a head is 5 wide"),
        (["model.norm=batch"], "model.norm: "),
        (["model.rope_theta=0"], "model.rope_theta: "),
    ],
)
def test_a_shape_that_cannot_be_is_refused(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(words)
    assert line in str(refused.value)


# --- computing -----------------------------------------------------------------------------------------------------------


@every_shape
def test_a_later_token_leaves_earlier_logits_as_they_were(words: tuple[str, ...]) -> None:
    model, ids = gpt(*words), some_ids(2)
    changed = ids.clone()
    changed[:, 9] = (ids[:, 9] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model({"inputs": ids}), model({"inputs": changed})
    assert torch.equal(before[:, :9], after[:, :9])
    assert bool((before[:, 9:] != after[:, 9:]).any(dim=-1).all())


@every_shape
def test_every_shape_learns(words: tuple[str, ...]) -> None:
    model, ids = gpt(*words).train(), some_ids(4, CONTEXT + 1)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    losses, _ = learn(model, batch, 25, 1e-2)
    assert losses[-1] < losses[0] / 2


@every_shape
def test_a_model_made_without_memory_computes_the_same(words: tuple[str, ...]) -> None:
    """Nothing that is worked out at build time is lost on the way from the meta device, and nothing but parameters is saved."""
    run = run_of(*words)
    model = build_model(run, DATA, torch.device("cpu")).eval()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert torch.equal(model({"inputs": some_ids(2)}), gpt(*words, seed=run.seed)({"inputs": some_ids(2)}))


def test_shared_key_and_value_heads_are_heads_repeated() -> None:
    torch.manual_seed(0)
    shared, whole = CausalSelfAttention(32, 4, 0.0, kv_heads=2), CausalSelfAttention(32, 4, 0.0)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            rows = getattr(shared.qkv, kind).unflatten(0, (8, 8))
            getattr(whole.qkv, kind).copy_(rows[[0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]].flatten(0, 1))
            getattr(whole.out, kind).copy_(getattr(shared.out, kind))
        x = torch.randn(2, 9, 32)
        torch.testing.assert_close(shared(x), whole(x))


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = Rotary(8, context=64, theta=100.0)
    query, key = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 8)
    products = [(rotary(query, start + 5) * rotary(key, start)).sum(dim=-1) for start in (0, 1, 50)]
    torch.testing.assert_close(products[1:], [products[0]] * 2)
    assert torch.equal(rotary(query, 0), query)
    assert not torch.allclose((rotary(query, 6) * rotary(key, 0)).sum(dim=-1), products[0])


def test_a_model_first_used_in_inference_mode_can_be_trained() -> None:
    model = gpt("model.positions=rotary")
    with torch.inference_mode():
        model({"inputs": some_ids(1)})
    model({"inputs": some_ids(1)}).sum().backward()


CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")


@pytest.mark.parametrize("words", [(), LLAMA], ids=["default", "llama"])
def test_a_classifier_reads_to_the_last_real_token(words: tuple[str, ...]) -> None:
    facts = replace(DATA, kind="labelled_text", classes=3)
    model = models.build(run_of(*words, *CLASSIFIER).model, facts)
    assert isinstance(model, Gpt)
    initialise(model, 1)
    assert model.head_parameters() == 3 * 32
    assert not any(name.startswith("output") for name in model.state_dict())
    ids, lengths = some_ids(3), torch.tensor([CONTEXT, 1, 9])
    batch = {"inputs": ids, "mask": torch.arange(CONTEXT) < lengths[:, None], "targets": torch.tensor([2, 0, 1])}
    alone = torch.cat([model({"inputs": ids[row : row + 1, :length]}) for row, length in enumerate(lengths)])
    torch.testing.assert_close(model(batch), alone)
    losses, weight = learn(model, batch, 20, 1e-2)
    assert weight == 3
    assert losses[-1] < losses[0] / 2
    guess = model.guess(model(batch), batch)
    assert guess.predicted.tolist() == guess.targets.tolist() == [2, 0, 1]
    example = model.example(2)
    assert model.loss(model(example), example)[0].isfinite()


# --- generation ----------------------------------------------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("prompt", [1, CONTEXT - 1, 3 * CONTEXT])
def test_a_cache_changes_no_logit(words: tuple[str, ...], prompt: int) -> None:
    model, ids = gpt(*words), some_ids(1, prompt)[0].tolist()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # logits of ordinary size
    seen: list[Tensor] = []
    tokens = 0

    def forward(batch: models.base.Batch, cache: KeyValueCache) -> Tensor:
        nonlocal tokens
        tokens += batch["inputs"].numel()
        seen.append(model(batch, cache)[0, -1])
        return seen[-1][None, None]

    ids += generate(forward, ids, 3 * CONTEXT, context=CONTEXT, vocabulary=VOCABULARY, generator=keyed_generator("text"))
    assert len(ids) == prompt + 3 * CONTEXT
    assert tokens < 6 * 3 * CONTEXT, "a window was worked out anew for nearly every token"
    for number, logits in enumerate(seen, start=prompt):
        window = ids[window_start(number, CONTEXT) : number]
        with torch.no_grad():
            torch.testing.assert_close(logits, model({"inputs": torch.tensor([window])})[0, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", [1, 2, 3, 5, 16, 64])
def test_the_window_holds_three_quarters_of_the_context_or_more(context: int) -> None:
    starts = [window_start(length, context) for length in range(1, 5 * context)]
    assert starts[:context] == [0] * context
    assert starts == sorted(starts)
    assert all(0.75 * context <= length - start <= context for length, start in enumerate(starts[context:], start=context + 1))
    assert context < 16 or len(set(starts)) == 1 + 4 * 4


def test_a_draw_follows_logits_temperature_and_top_k() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])

    def drawn(**how: float) -> list[int]:
        generator = torch.Generator().manual_seed(3)
        return [
            draw(logits, generator, how.get("temperature", 1.0), None if "top_k" not in how else int(how["top_k"])) for _ in range(2000)
        ]

    shares = torch.bincount(torch.tensor(drawn()), minlength=4) / 2000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.03, rtol=0)
    assert drawn() == drawn()
    assert set(drawn(temperature=0)) == set(drawn(top_k=1)) == {1}
    assert set(drawn(top_k=2)) == {1, 2}
    assert drawn(top_k=9) == drawn()
    assert drawn(temperature=0.3).count(1) > drawn().count(1) > drawn(temperature=3.0).count(1)


def test_a_text_depends_on_the_seed_and_stays_in_the_vocabulary() -> None:
    model = gpt(*LLAMA)
    first, again, other = (
        generate(model, [1], 60, context=CONTEXT, vocabulary=20, generator=keyed_generator(seed), temperature=0.8, top_k=15)
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert max(first) < 20


# --- whole runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_llama_shaped_job_trains_and_writes(tmp_path: Path, precision: str) -> None:
    words = (*LLAMA, "model.heads=4", f"train.precision={precision}", "train.sample_tokens=80", "train.steps=30", "optimizer.lr=1e-2")
    folder = train(tmp_path, *words, "checkpoint.every=30")
    summary = read(folder, "summary.json")
    assert summary["final_loss"] < 3.6
    assert summary["sample"]
    model = dml_runner.load(folder)
    logits = model({"inputs": torch.zeros(1, 8, dtype=torch.int64)})
    assert dml_runner.plan(small(tmp_path, *words)).parameters == sum(p.numel() for p in model.parameters())
    assert bool(logits.isfinite().all())
