"""Recomputation: gradients are the same bits, what backward does not need is not kept, and nothing happens twice that must happen once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import in_group
from rank_pool import job
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from dml_runner import models
from dml_runner.bench.memory import measure as bench_memory
from dml_runner.comm.counter import Sent
from dml_runner.comm.links import Links
from dml_runner.comm.world import World
from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.layout import Recomputed
from dml_runner.models.base import Batch, Model, initialise
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.parallel.batch_norm import connect
from dml_runner.parallel.host_memory import SMALL, Away, InHostMemory, Waiting
from dml_runner.parallel.products import Giving, Keeping, Products, is_product
from dml_runner.parallel.recompute import recompute, refusals
from dml_runner.parallel.replicate import Replicas, Sum
from dml_runner.planning.activations import rank_activations
from dml_runner.planning.shape import measure

CPU = torch.device("cpu")
TEXTS = DataFacts("labelled_text", 8, 8, None, 16, 50, 16, {}, "", 3)
IMAGES = DataFacts("images", 8, 8, 1, 0, 0, 0, {}, "", 3, (3, 8, 8))
GPT = ("model=gpt", "model.layers=3", "model.hidden=16", "model.heads=2")
LLAMA = (*GPT, "model.norm=rms", "model.mlp=swiglu", "model.positions=rotary", "model.bias=false", "model.kv_heads=1", "model.tied=false")
RESNET = ("model=resnet", "data=digits", "model.depths=[1,2]", "model.width=16")
FAMILIES = {
    "gpt": GPT,
    "llama": LLAMA,
    "bert": ("model=bert", "model.layers=3", "model.hidden=16", "model.heads=2"),
    "elmo": ("model=elmo", "model.layers=3", "model.hidden=16", "model.projection=8", "model.filters=[4,4]"),
    "rnn": ("model=rnn", "model.hidden=16", "model.layers=3"),
    "gru": ("model=rnn", "model.hidden=16", "model.layers=3", "model.cell=gru"),
    "resnet, group norm": (*RESNET, "model.norm=group"),
    "resnet, batch norm": RESNET,
}
WAYS = {
    "every": Recomputed("inputs"),
    "second": Recomputed("inputs", every=2),
    "products": Recomputed("products"),
    "products of two": Recomputed("products", every=2),
}
every_way = pytest.mark.parametrize("way", WAYS)


def made(family: str, *words: str, dropout: float = 0.1) -> Model:
    """A small model with starting weights that drops out."""
    model = models.build(
        compose([*FAMILIES[family], f"model.dropout={dropout}", *words]).run.model, IMAGES if "resnet" in family else TEXTS
    )
    initialise(model, 1)
    return model.train()


def batch_of(model: Model, family: str, samples: int = 4) -> dict[str, Tensor]:
    """Something to train on; the texts of an encoder differ in length."""
    generator = torch.Generator().manual_seed(3)
    if "resnet" in family:
        images = torch.randn(samples, 3, 8, 8, generator=generator)
        return {"images": images, "targets": torch.randint(3, (samples,), generator=generator)}
    ids = torch.randint(50, (samples, 12), generator=generator)
    if family == "elmo":
        characters = torch.randint(200, (samples, 12, compose(list(FAMILIES["elmo"])).run.model.word_length), generator=generator)
        return {"characters": characters, "targets": ids, "before": ids}
    mask = torch.arange(12) < torch.tensor([12, 5, 9, 1])[:samples, None]
    return {"inputs": ids, "targets": ids} | ({"mask": mask} if family == "bert" else {})


def trained_on(model: Model, batch: Batch, bf16: bool = False, module: nn.Module | None = None) -> list[Tensor]:
    """Gradients after two micro-batches, buffers, and what is drawn next."""
    torch.manual_seed(5)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            total, _ = model.loss((module or model)(batch), batch)
        total.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [*gradients, *(buffer.clone() for buffer in model.buffers()), torch.rand(2)]


def equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def calls_of(model: Model) -> list[int]:
    """The numbers of blocks as they run."""
    called: list[int] = []
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: called.append(number))
    return called


# --- the same bits -------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_statistics_are_the_same_bits(family: str, way: str) -> None:
    for bf16 in (False, True):
        plain, twice = made(family), made(family)
        batch = batch_of(plain, family)
        recompute(twice, WAYS[way], CPU)
        assert equal(trained_on(twice, batch, bf16), trained_on(plain, batch, bf16))


@pytest.mark.parametrize(("way", "again"), [("every", [2, 1, 0]), ("second", [2, 0, 1]), ("products", [2, 1, 0])])
def test_blocks_run_again_in_backward_and_only_there(way: str, again: list[int]) -> None:
    model = made("gpt")
    recompute(model, WAYS[way], CPU)
    batch, called = batch_of(model, "gpt"), calls_of(model)
    model.loss(model(batch), batch)[0].backward()
    assert called == [0, 1, 2, *again]
    called.clear()
    with torch.no_grad():
        model.eval()
        whole = model(batch)
        cache = KeyValueCache(12)
        last = model(batch, cache)
    assert called == [0, 1, 2] * 2
    assert torch.allclose(last[:, 0], whole[:, -1], atol=1e-6)


def test_a_stage_counts_its_own_blocks() -> None:
    model = made("gpt")
    recompute(model, WAYS["second"], CPU)
    del model.blocks._modules["0"]
    called: list[str] = []
    for name, block in model.blocks.named_children():
        block.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    x = torch.randn(2, 12, 16, requires_grad=True)
    model.through(x, {}, range(1, 3)).sum().backward()
    assert called == ["1", "2"] * 2
    assert x.grad is not None


def test_frozen_blocks_are_not_run_again() -> None:
    plain, twice = made("gpt", "model.frozen=2"), made("gpt", "model.frozen=2")
    recompute(twice, WAYS["every"], CPU)
    batch, called = batch_of(twice, "gpt"), calls_of(twice)
    assert equal(trained_on(twice, batch), trained_on(plain, batch))
    assert called == [0, 1, 2, 2] * 2


def test_backward_may_come_twice() -> None:
    found = []
    for way in (None, "every", "products"):
        model = made("gpt")
        if way:
            recompute(model, WAYS[way], CPU)
        batch = batch_of(model, "gpt")
        torch.manual_seed(5)
        total, _ = model.loss(model(batch), batch)
        total.backward(retain_graph=True)
        total.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert equal(found[1], found[0])
    assert equal(found[2], found[0])


# --- what is kept --------------------------------------------------------------------------------------------------------


class Thin(nn.Module):
    """A block that keeps as much as it hands on."""

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """``x``, bent."""
        return x.tanh()


def most_held(work: Callable[[], Any], *outside: Any) -> int:
    """The most bytes that ``work`` holds at a time beside what was there, as torch's own tracker counts them."""
    tracker = MemTracker()
    tracker.track_external(*outside)
    before = sum(tracker.get_tracker_snapshot()[CPU].values()) // 2
    with tracker:
        work()
    return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"]) - before


def test_thin_blocks_need_least_memory_in_stretches_of_their_root() -> None:
    found = {}
    for every in (1, 2, 4, 8, 16):
        model = Model()
        model.blocks = nn.ModuleList(Thin() for _ in range(16))
        recompute(model, Recomputed("inputs", every), CPU)
        x = torch.randn(64, 1024, requires_grad=True)
        found[every] = most_held(lambda model=model, x=x: model.through(x, {}).sum().backward(), x) / x.nbytes
    law = {every: 16 / every + every for every in found}
    assert min(found, key=found.__getitem__) == 4
    assert all(law[every] - 2 <= found[every] <= law[every] + 3 for every in found), found


@pytest.mark.slow
def test_a_transformer_holds_what_the_plan_says(tmp_path: Path) -> None:
    words = ("model=gpt", "model.layers=16", "model.hidden=64", "model.heads=2", "model.dropout=0.1", "data.seq_len=64")
    asked = job(tmp_path, *words, "strategy=single", "train.global_batch=8")
    facts = measure(asked.run, asked.facts, asked.layout)
    ids = torch.randint(asked.facts.vocabulary, (8, 64), generator=torch.Generator().manual_seed(1))
    batch = {"inputs": ids, "targets": ids}
    for how in (*(Recomputed("inputs", every) for every in (1, 2, 4, 8, 16)), Recomputed("products"), Recomputed("none")):
        model = build_model(asked.run, asked.facts, CPU)
        recompute(model, how, CPU)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def step(model: Model = model) -> None:
            output = model(batch)  # there until backward is over, as in an engine
            model.loss(output, batch)[0].backward()

        held = most_held(step, model)
        predicted = rank_activations(facts, replace(asked.layout, recompute=how))[0]
        assert held == pytest.approx(predicted, rel=0.05), how


def test_what_is_written_to_later_is_not_kept() -> None:
    x, w = torch.randn(3, 3), torch.randn(3, 3)

    def work() -> Tensor:
        gates = (x @ w).unsafe_chunk(3)  # no views to autograd, and the same memory
        for gate in gates:
            gate.sigmoid_()
        return (x @ w) + torch.cat(gates)

    products = Products(Waiting())
    with Keeping(products):
        first = work()
    with Giving(products):
        assert torch.equal(work(), first)
    assert [products.has(torch.ops.aten.mm.default, number) for number in (0, 1)] == [False, True]


def test_what_drew_random_numbers_is_not_kept() -> None:
    attention = torch.ops.aten._scaled_dot_product_flash_attention.default
    heads = [torch.empty(1, 1, 4, 8)] * 3
    assert is_product(attention, heads, {})
    assert is_product(attention, [*heads, 0.0], {})
    assert not is_product(attention, [*heads, 0.1], {})
    assert not is_product(attention, heads, {"dropout_p": 0.1})


def test_host_memory_keeps_what_is_large_and_no_parameter() -> None:
    large, small = torch.randn(SMALL // 4 + 1, requires_grad=True), torch.randn(4)
    weight = nn.Parameter(torch.randn(512, 512))
    away = InHostMemory()
    assert isinstance(away.pack(large), Away)
    assert torch.equal(away.unpack(away.pack(large)), large)
    assert all(away.pack(each) is each for each in (small, weight))
    assert not isinstance(away.pack(weight.t()), Away)
    with away:
        (large * large.detach()).sum().backward()
    assert torch.equal(large.grad, large.detach())
    model = made("gpt")
    recompute(model, Recomputed("none", offload=True), CPU)
    assert "through" not in vars(model), "on a CPU it is there already"


# --- ranks ---------------------------------------------------------------------------------------------------------------


def normalise_twice(world: World, way: str, synchronise: bool) -> list[Any]:
    """Gradients, running statistics and bytes sent by two ranks with batch norms."""
    model, sent = made("resnet, batch norm", f"model.synchronise={str(synchronise).lower()}"), Sent()
    connect(model, sent, None)
    if way:
        recompute(model, WAYS[way], CPU)
    batch = {key: value[world.rank :: world.size] for key, value in batch_of(model, "resnet", 6).items()}
    return [*trained_on(model, batch), sent.take()]


@pytest.mark.slow
@pytest.mark.parametrize("synchronise", [True, False])
def test_batch_norms_over_ranks_move_and_talk_once(tmp_path: Path, synchronise: bool) -> None:
    plain = in_group(2, normalise_twice, tmp_path, "", synchronise)
    for way in WAYS:
        for (*found, sent), (*wanted, bytes_before) in zip(in_group(2, normalise_twice, tmp_path, way, synchronise), plain, strict=True):
            assert equal(found, wanted)
            assert sent == bytes_before > 0


def replicate(world: World) -> list[list[Tensor]]:
    """Gradients of a replica of two micro-batches, the first of which is not summed, without and with recomputation."""
    found = []
    for way in (None, *WAYS):
        model, sent = made("gpt"), Sent()
        if way:
            recompute(model, WAYS[way], CPU)
        replicas = Replicas(model, CPU, 0.001, sent, Sum(Links(torch.distributed.group.WORLD, sent), "ring", 1))
        batch = batch_of(model, "gpt")
        torch.manual_seed(world.rank)
        with replicas.accumulate():
            model.loss(replicas.module(batch), batch)[0].backward()
        model.loss(replicas.module(batch), batch)[0].backward()
        found.append([p.grad.clone() for p in model.parameters()])
    return found


def test_replicas_sum_the_same_gradients(tmp_path: Path) -> None:
    for plain, *others in in_group(2, replicate, tmp_path):
        assert all(equal(found, plain) for found in others)


# --- models of others ----------------------------------------------------------------------------------------------------


SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 200, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0},
    "bert": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 200},
    "vit": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4},
}


def library_model(folder: Path, kind: str, task: str) -> Model:
    """A small model of the transformers library that drops out, with starting weights."""
    transformers = pytest.importorskip("transformers")
    transformers.AutoConfig.for_model(kind, **SIZES[kind]).save_pretrained(folder)
    words = ["model=huggingface", f"model.source={folder}", f"model.task={task}", "model.context=16", "model.dropout=0.1"]
    data = ["data=synthetic"] if task == "image_classification" else []
    return build_model(compose([*words, *data, "model.pretrained=null"]).run, IMAGES if data else replace(TEXTS, classes=0), CPU).train()


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "causal_lm"), ("bert", "masked_lm"), ("vit", "image_classification")])
@pytest.mark.parametrize("way", ["every", "products"])
def test_layers_of_the_library_are_recomputed_one_by_one(tmp_path: Path, kind: str, task: str, way: str) -> None:
    found = []
    for how in (Recomputed("none"), WAYS[way]):
        model = library_model(tmp_path, kind, task).train()
        recompute(model, how, CPU)
        called = calls_of(model)
        ids = torch.randint(200, (3, 8), generator=torch.Generator().manual_seed(1))
        batch: dict[str, Tensor] = {"inputs": ids, "targets": ids}
        if kind == "vit":
            batch = {"images": ids[:, None, :, None].float().expand(3, 3, 8, 8) / 200, "targets": ids[:, 0] % 3}
        found.append(trained_on(model, batch))
        assert called == [0, 1, 2] * 2, "what others wait for before a block is waited for once"
    assert equal(found[1], found[0])


def test_a_whole_model_is_not_recomputed_in_stretches() -> None:
    reason = "it runs as a whole"
    assert not refusals(Recomputed("inputs", 2), None, 3)
    assert not refusals(Recomputed("inputs"), reason, 3)
    assert not refusals(Recomputed("none"), reason, 0)
    assert [problem.key for problem in refusals(Recomputed("inputs", 2), reason, 3)] == ["recompute.every"]
    assert [problem.key for problem in refusals(Recomputed("products"), reason, 0)] == ["recompute"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler are not ours
@pytest.mark.timeout(600)  # it compiles C++
@pytest.mark.parametrize("family", ["gpt", "resnet, batch norm", "gru"])
def test_a_compiled_model_learns_the_same(family: str) -> None:
    batch = batch_of(made(family), family)
    wanted = trained_on(made(family, dropout=0.0), batch)
    for way in ("every", "products"):
        model = made(family, dropout=0.0)
        recompute(model, WAYS[way], CPU)
        model.compile()
        for one, other in zip(trained_on(model, batch), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# --- dml bench memory ----------------------------------------------------------------------------------------------------


def test_the_bench_tells_what_each_way_takes(tmp_path: Path) -> None:
    recipe = tmp_path / "job.yaml"
    recipe.write_text(
        f"defaults: [config, override model: gpt, override data: synthetic, _self_]\noutputs: {tmp_path}\n"
        "model: {layers: 2, hidden: 64}\ndata: {seq_len: 64}\n"
    )
    told = json.loads(bench_memory([f"recipe={recipe}", "rounds=2", "steps=1", f"to={tmp_path / 'page.md'}", "format=json"]))
    rows = {row["way"]: row for row in told["rows"]}
    assert list(rows) == ["none", "selective", "full, every=1", "full, every=2"]
    assert all(row["measured"] == pytest.approx(row["planned"], rel=0.1) for row in rows.values())
    assert rows["none"]["measured"] > rows["selective"]["measured"] > rows["full, every=1"]["measured"]
    assert rows["none"]["ratio"]["median"] == 1.0
    assert (tmp_path / "page.md").read_text().count("| full, every=2 |") == 1
    with pytest.raises(ConfigError, match="rounds: not a count"):
        bench_memory(["rounds=1"])
