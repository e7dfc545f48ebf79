"""The bert family: it sees both ways and never padding, learns, and has the published sizes. And what transformer families share: how
they are divided over ranks, and weights in Hugging Face's naming (against transformers itself: tests/parity)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from learning import learn
from torch import Tensor, nn
from torch.nn.functional import linear

from dml_runner import models
from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Model, initialise
from dml_runner.models.parts.publication import from_foreign, to_foreign
from dml_runner.planning.shape import measure

VOCABULARY, CONTEXT, CLASSES = 50, 16, 3
DATA = DataFacts("labelled_text", 8, 8, None, CONTEXT, VOCABULARY, CONTEXT, {}, "", CLASSES)
SHAPE = ("model=bert", "model.layers=2", "model.hidden=32", "model.heads=4", f"model.context={CONTEXT}")
CLASSIFIER = ("data=labelled_text", "data.path=texts.tsv", "model.head=classifier")
HEADS = [(), CLASSIFIER, ("model.kv_heads=2",)]
every_head = pytest.mark.parametrize("words", HEADS, ids=["mlm", "classifier", "shared keys"])


def made(*words: str, seed: int = 1) -> Model:
    """A small model with starting weights, ready to evaluate."""
    model = models.build(compose([*SHAPE, *words]).run.model, DATA)
    initialise(model, seed)
    return model.eval()


def filled(*words: str) -> Model:
    """The same with weights large enough that every part shows, biases too."""
    model = made(*words)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def texts() -> dict[str, Tensor]:
    """Two texts, the second of 9 tokens and padded."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, VOCABULARY, (2, CONTEXT), generator=generator)
    return {"inputs": ids, "mask": torch.arange(CONTEXT) < torch.tensor([[CONTEXT], [9]])}


# --- bert ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "parameters", "hidden"), [("bert_base", 109_482_240, 768), ("bert_large", 335_141_888, 1024)])
def test_a_published_size_has_the_published_count(size: str, parameters: int, hidden: int) -> None:
    """Of the encoder with its pooler, whatever the head."""
    mlm = measure(compose([f"model={size}"]).run, DATA)
    classifier = measure(compose([f"model={size}", *CLASSIFIER]).run, DATA)
    assert (mlm.parameters, mlm.head_parameters) == (parameters, 2 * hidden + 30_522)
    assert (classifier.parameters, classifier.head_parameters) == (parameters, CLASSES * hidden + CLASSES)


def test_starting_weights_are_as_published() -> None:
    for name, parameter in made().named_parameters():
        if parameter.dim() == 1:
            assert parameter.unique().tolist() == [float("norm" in name and name.endswith("weight"))], name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15), name


@every_head
def test_padding_is_never_seen(words: tuple[str, ...]) -> None:
    model, batch = filled(*words), texts()
    other = {**batch, "inputs": torch.where(batch["mask"], batch["inputs"], (batch["inputs"] + 1) % VOCABULARY)}
    short = {"inputs": batch["inputs"][1:, :9]}
    with torch.no_grad():
        outputs = [model(b) for b in (batch, other, short)]
    real = [o if o.dim() == 2 else o[1, :9] for o in outputs[:2]]
    assert torch.equal(*real)
    torch.testing.assert_close(outputs[0][1:, :9] if outputs[0].dim() == 3 else outputs[0][1:], outputs[2])


def test_every_position_sees_every_other() -> None:
    model, batch = filled(), texts()
    changed = batch["inputs"].clone()
    changed[0, 9] = (changed[0, 9] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model(batch), model({**batch, "inputs": changed})
    assert bool((before[0] != after[0]).any(dim=-1).all())
    assert torch.equal(before[1], after[1])


def test_without_segments_all_are_of_the_first() -> None:
    model, batch = filled(), texts()
    first = torch.zeros_like(batch["inputs"])
    with torch.no_grad():
        assert torch.equal(model(batch), model({**batch, "segments": first}))
        assert not torch.equal(model(batch), model({**batch, "segments": first + 1}))


def test_a_sample_of_padding_alone_harms_nothing() -> None:
    model, batch = filled(), texts()
    batch["mask"][1] = False
    model(batch).sum().backward()
    assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in model.parameters())


@every_head
def test_every_head_learns(words: tuple[str, ...]) -> None:
    model, batch = made(*words, "model.dropout=0.1").train(), texts()
    targets = batch["inputs"].masked_fill(~batch["mask"], -100)
    batch["targets"] = torch.tensor([2, 0]) if "model.head=classifier" in words else targets
    losses, weight = learn(model, batch, 25, 1e-2)
    assert losses[-1] < losses[0] / 2
    assert weight == (2 if "model.head=classifier" in words else CONTEXT + 9)
    guess = model.eval().guess(model(batch), batch)
    assert len(guess.predicted) == len(guess.targets) == weight
    assert float((guess.predicted == guess.targets).float().mean()) > 0.5


@every_head
def test_a_model_made_without_memory_computes_the_same(words: tuple[str, ...]) -> None:
    run = compose([*SHAPE, *words]).run
    model = build_model(run, DATA, torch.device("cpu")).eval()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert torch.equal(model(texts()), made(*words, seed=run.seed)(texts()))
    example = model.example(2)
    assert model.loss(model(example), example)[0].isfinite()


# --- divided over ranks --------------------------------------------------------------------------------------------------

LLAMA = ("model=gpt", "model.norm=rms", "model.mlp=swiglu", "model.positions=rotary", "model.bias=false", "model.tied=false")
DIVIDED = {"bert": (), "bert, shared keys": ("model.kv_heads=2",), "gpt": ("model=gpt",), "llama": (*LLAMA, "model.kv_heads=2")}


def share_of(whole: nn.Linear, plan: TensorPlan, name: str, rank: int) -> nn.Linear:
    """The half of a linear layer that ``rank`` of two holds by the plan."""
    half = copy.deepcopy(whole)
    if name in plan.row:
        half.weight = nn.Parameter(whole.weight.chunk(2, dim=1)[rank])
        if rank and half.bias is not None:
            half.bias = None
        return half
    assert all(rows % (2 * plan.column[name]) == 0 for rows in plan.fused.get(name, (whole.out_features,)))
    for kind, tensor in list(half.named_parameters()):
        parts = tensor.detach().split(plan.fused.get(name, (len(tensor),)))
        setattr(half, kind, nn.Parameter(torch.cat([part.chunk(2)[rank] for part in parts])))
    return half


@pytest.mark.parametrize("words", DIVIDED.values(), ids=DIVIDED.keys())
def test_two_halves_by_the_plan_make_the_whole(words: tuple[str, ...]) -> None:
    """Each half computes alone, by the module's own code; what the two put out is added."""
    model = filled(*words)
    plan, block = model.tensor_plan(), model.blocks[1]
    divided = {*plan.column, *plan.row}
    assert divided == {f"blocks.*.{name}" for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    halves = [copy.deepcopy(block) for _ in range(2)]
    for rank, half in enumerate(halves):
        for name in divided:
            part, layer = name.removeprefix("blocks.*.").split(".")
            setattr(half.get_submodule(part), layer, share_of(block.get_submodule(f"{part}.{layer}"), plan, name, rank))
    x = torch.randn(2, CONTEXT, 32)
    for part in ("attention", "mlp"):
        torch.testing.assert_close(sum(half.get_submodule(part)(x) for half in halves), block.get_submodule(part)(x))
    assert sum(p.numel() for half in halves for p in half.parameters()) < 1.1 * sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("words", DIVIDED.values(), ids=DIVIDED.keys())
def test_the_vocabulary_divides_by_token(words: tuple[str, ...]) -> None:
    model = filled(*words)
    named = dict(model.named_modules())
    assert all(len(p) == VOCABULARY for name in model.tensor_plan().vocabulary for p in named[name].parameters())
    output, tokens = named[model.tensor_plan().vocabulary[-1]], named["tokens"]
    weight, bias = getattr(output, "weight", tokens.weight), getattr(output, "bias", None)
    x = torch.randn(2, 32)
    whole = linear(x, weight, bias)
    halves = [linear(x, weight[rows], None if bias is None else bias[rows]) for rows in (slice(0, 25), slice(25, 50))]
    torch.testing.assert_close(torch.cat(halves, dim=-1), whole)


# --- Hugging Face's naming -----------------------------------------------------------------------------------------------

PUBLISHED = {"bert": (), "bert classifier": CLASSIFIER, "gpt2": ("model=gpt",), "gpt2 classifier": ("model=gpt", *CLASSIFIER)}
PUBLISHED |= {"llama": (*LLAMA, "model.kv_heads=2"), "llama classifier": (*LLAMA, *CLASSIFIER)}


def read(model: Model, file: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """What ``from_foreign`` makes of a file for a model."""
    publication = model.publication()
    assert publication is not None
    return from_foreign(publication, file.keys(), file.__getitem__, {name: p.shape for name, p in model.named_parameters()})


def written(model: Model) -> dict[str, Tensor]:
    """The model as a file."""
    publication = model.publication()
    assert publication is not None
    return to_foreign(publication, model.state_dict())


@pytest.mark.parametrize("words", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_what_is_written_reads_back(words: tuple[str, ...]) -> None:
    model = filled(*words)
    file = written(model)
    tensors, absent = read(model, file)
    assert not absent
    assert list(tensors) == list(model.publication().tensors)  # type: ignore[union-attr]
    assert set(tensors) == set(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert all(tensor.is_contiguous() for tensor in file.values())


def test_a_shape_that_transformers_lacks_is_not_published() -> None:
    shapes = [("model.kv_heads=2",), ("model=gpt", "model.kv_heads=2"), ("model=gpt", "model.norm=rms"), (*LLAMA, "model.bias=true")]
    assert [made(*words).publication() for words in shapes] == [None] * 4


def test_earlier_spellings_missing_prefixes_and_what_is_not_needed_are_no_hindrance() -> None:
    model = filled()
    renamed = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in written(model).items()
    }
    renamed |= {"embeddings.position_ids": torch.arange(CONTEXT)[None], "pooler.dense.weight": torch.zeros(32, 32)}
    tensors, absent = read(model, renamed)
    assert not absent
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())


def test_a_head_for_another_task_starts_anew() -> None:
    mlm, three = filled(), filled(*CLASSIFIER)
    five = models.build(compose([*SHAPE, *CLASSIFIER, "model.classes=5"]).run.model, DATA)
    tensors, absent = read(five, written(mlm))
    assert absent == ["pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias"]
    assert torch.equal(tensors["blocks.1.attention.qkv.weight"], mlm.state_dict()["blocks.1.attention.qkv.weight"])
    tensors, absent = read(five, written(three))
    assert absent == ["classifier.weight", "classifier.bias"]
    assert torch.equal(tensors["pooler.weight"], three.state_dict()["pooler.weight"])
    assert read(mlm, written(three))[1] == [name for name in mlm.state_dict() if name.startswith(("transform", "decoder"))]


def test_a_longer_position_table_is_cut() -> None:
    longer, shorter = filled(), made("model.context=8")
    tensors, _ = read(shorter, written(longer))
    assert torch.equal(tensors["positions.weight"], longer.state_dict()["positions.weight"][:8])


def without(file: dict[str, Tensor], *beginnings: str) -> dict[str, Tensor]:
    """The file less what begins so."""
    return {name: tensor for name, tensor in file.items() if not name.startswith(beginnings)}


LAYER = "bert.encoder.layer"
MISFITS: list[tuple[str, Callable[[], tuple[Model, dict[str, Tensor]]], list[str]]] = [
    (
        "missing",
        lambda: (made(), without(written(made()), f"{LAYER}.1.attention.self.key.bias")),
        [f"model.pretrained: has no tensor {LAYER}.1.attention.self.key.bias; are they weights of such a model?"],
    ),
    (
        "vocabulary",
        lambda: (made("model.vocab_size=60"), written(made())),
        [
            "model.pretrained: bert.embeddings.word_embeddings.weight has another shape; got 50 x 32; allowed 60 x 32; "
            "set model.vocab_size=50",
            "model.pretrained: cls.predictions.bias has another shape; got 50; allowed 60; set model.vocab_size=50",
        ],
    ),
    (
        "positions",
        lambda: (made(), written(made("model.context=8"))),
        [
            "model.pretrained: bert.embeddings.position_embeddings.weight has another shape; got 8 x 32; allowed 16 x 32; "
            "set model.context=8",
        ],
    ),
    (
        "transposed",
        lambda: (made("model=gpt"), written(made("model=gpt", "model.ffn_hidden=100"))),
        [
            f"model.pretrained: transformer.h.{layer}.mlp.{kind} has another shape; got {got}; allowed {allowed}"
            for layer in range(2)
            for kind, got, allowed in [
                ("c_fc.weight", "32 x 100", "32 x 128"),
                ("c_fc.bias", "100", "128"),
                ("c_proj.weight", "100 x 32", "128 x 32"),
            ]
        ],
    ),
    (
        "deeper",
        lambda: (made(), written(made("model.layers=11"))),
        [
            f"model.pretrained: has 144 tensors of layers that the model lacks, {LAYER}.10.attention.output.LayerNorm.bias among them; "
            "set model.layers to as many as it has"
        ],
    ),
]


@pytest.mark.parametrize(("pair", "lines"), [misfit[1:] for misfit in MISFITS], ids=[misfit[0] for misfit in MISFITS])
def test_weights_that_do_not_fit_are_refused(pair: Callable[[], tuple[Model, dict[str, Tensor]]], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        read(*pair())
    assert str(refused.value).splitlines() == lines


def test_of_many_misfits_ten_are_listed_and_all_counted() -> None:
    with pytest.raises(ConfigError) as refused:
        read(made(), written(made("model=gpt")))
    lines = str(refused.value).splitlines()
    assert len(lines) == 11
    assert lines[0] == "model.pretrained: has no tensor bert.embeddings.word_embeddings.weight; are they weights of such a model?"
    assert lines[-1] == "model.pretrained: and 27 more, 37 in all"


def test_numbers_and_dtypes_of_the_file_are_kept() -> None:
    """Reading changes nothing but names; whoever copies it into the model chooses the dtype."""
    model = filled()
    halved = {name: tensor.bfloat16() for name, tensor in written(model).items()}
    tensors, _ = read(model, halved)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
