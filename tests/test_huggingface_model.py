"""Models of the transformers library: they are what the library makes of them, learn alike on any ranks, and never run others' code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from helpers import losses, on_ranks, write_text
from publishing import DATA, lines, made
from resume_helpers import command

import dml_runner
from dml_runner.config import compose
from dml_runner.engines.assemble import build_model
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts
from dml_runner.launch.export import export_hf
from dml_runner.launch.pretrained import check_pretrained
from dml_runner.models.base import Model

transformers = pytest.importorskip("transformers")

IMAGES = DataFacts("images", 8, 8, 1, 0, 0, 0, {}, "", 3, (1, 8, 8))
WIDE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**WIDE, "vocab_size": 200, "max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 200, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0},
    "bert": TEXT,
    "llama": {**TEXT, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 200, "max_position_embeddings": 32},
    "gpt_neox": TEXT,
    "vit": {**WIDE, "image_size": 8, "patch_size": 4, "num_channels": 1},
}
AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
}
KINDS = [
    ("gpt2", "causal_lm"),
    ("gpt2", "sequence_classification"),
    ("llama", "causal_lm"),
    ("llama", "sequence_classification"),
    ("bert", "masked_lm"),
    ("bert", "sequence_classification"),
    ("distilbert", "masked_lm"),
    ("gpt_neox", "causal_lm"),
    ("vit", "image_classification"),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The library's bars and remarks are none of a test's."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()


def config(kind: str, **changed: Any) -> Any:
    """The library's configuration of a tiny model."""
    return transformers.AutoConfig.for_model(kind, **{**CONFIGS[kind], **changed})


def save(folder: Path, kind: str, task: str, **changed: Any) -> Path:
    """A tiny model as the library saves it, with weights that make a difference."""
    torch.manual_seed(1)
    model = getattr(transformers, AUTO[task]).from_config(config(kind, num_labels=3, **changed))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def words(source: Path, task: str, *more: str) -> list[str]:
    data = {"sequence_classification": ["data=labelled_text", "data.path=x.tsv"], "image_classification": ["data=synthetic"]}
    return ["model=huggingface", f"model.source={source}", f"model.task={task}", "model.context=16", *data.get(task, ()), *more]


def ours(source: Path, task: str, *more: str) -> Model:
    """The model with its weights, as a rank has it."""
    run, data = compose(words(source, task, *more)).run, IMAGES if task == "image_classification" else DATA
    found = check_pretrained(run, data)
    return build_model(run, data, torch.device("cpu"), None if found is None else str(found.path))


# --- what the library makes of it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_outputs_are_those_of_the_library(tmp_path: Path, kind: str, task: str) -> None:
    """Bit for bit, from a saved model, padding and all; export gives the same weights back."""
    source = save(tmp_path / "saved", kind, task)
    model, theirs = ours(source, task).eval(), getattr(transformers, AUTO[task]).from_pretrained(source).eval()
    ids, mask = torch.randint(1, 200, (4, 9)), torch.ones(4, 9, dtype=torch.bool)
    mask[1, 5:] = False
    ids[1, 5:] = theirs.config.pad_token_id = getattr(theirs.config, "pad_token_id", None) or 0
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        if task == "image_classification":
            assert torch.equal(model({"images": images}), theirs(pixel_values=images).logits)
        else:
            assert torch.equal(model({"inputs": ids, "mask": mask}), theirs(input_ids=ids, attention_mask=mask.long()).logits)
    assert {name.removeprefix("theirs."): value for name, value in model.named_buffers()}.keys() == dict(theirs.named_buffers()).keys()
    assert sum(p.numel() for p in model.parameters()) == theirs.num_parameters()
    assert len(model.blocks) == 3
    assert 0 < sum(p.numel() for module in model.stem() for p in module.parameters()) < theirs.num_parameters()


def test_a_model_starts_anew_from_its_seed_and_its_architecture(tmp_path: Path) -> None:
    config("bert", initializer_range=0.5).save_pretrained(tmp_path)
    model = ours(tmp_path, "masked_lm", "model.pretrained=null")
    state = model.state_dict()
    assert torch.equal(state["theirs.bert.embeddings.LayerNorm.weight"], torch.ones(16))
    assert not state["theirs.cls.predictions.bias"].any()
    table = state["theirs.bert.embeddings.word_embeddings.weight"]
    assert not table[0].any(), "the padding token"
    assert table[1:].std() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(
        table, ours(tmp_path, "masked_lm", "model.pretrained=null").state_dict()["theirs.bert.embeddings.word_embeddings.weight"]
    )
    other = ours(tmp_path, "masked_lm", "model.pretrained=null", "seed=2").state_dict()
    assert not torch.equal(table, other["theirs.bert.embeddings.word_embeddings.weight"])
    assert model.theirs.cls.predictions.decoder.weight is model.theirs.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    assert not any("decoder" in name for name in state), "what is one is kept once"


def test_another_head_starts_anew_and_frozen_layers_stay(tmp_path: Path) -> None:
    source = save(tmp_path / "saved", "bert", "masked_lm")
    run = compose(words(source, "sequence_classification", "model.frozen=2")).run
    found = check_pretrained(run, DATA)
    assert found
    anew = "theirs.bert.pooler.dense.weight, theirs.bert.pooler.dense.bias, theirs.classifier.weight, theirs.classifier.bias"
    assert found.notice.endswith(f"starts anew: {anew}")
    model = ours(source, "sequence_classification", "model.frozen=2")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("embeddings" in name or "layer.0." in name or "layer.1." in name for name in trained)
    assert any("layer.2." in name for name in trained)
    source = save(tmp_path / "labelled", "bert", "sequence_classification")
    run = compose(words(source, "sequence_classification", "model.classes=5")).run
    found = check_pretrained(run, DATA)
    assert found
    assert found.notice.endswith("starts anew: theirs.classifier.weight, theirs.classifier.bias")


def test_dropout_and_labels_are_the_jobs(tmp_path: Path) -> None:
    config("bert").save_pretrained(tmp_path)
    model = ours(tmp_path, "sequence_classification", "model.pretrained=null", "model.dropout=0.25")
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.25}
    assert model({"inputs": torch.ones(2, 4, dtype=torch.int64)}).shape == (2, 3)


# --- training ------------------------------------------------------------------------------------------------------------


def job(folder: Path, source: Path, task: str, run: str, *more: str) -> list[str]:
    """A job of three steps on data that the task goes with."""
    path = folder / "text-20000.txt"
    text = ["data=text", f"data.path={path if path.exists() else write_text(folder)}", "data.vocab_size=150"]
    images = ["data=synthetic", "data.size=8", "data.channels=1", "data.classes=3"]
    steps = ["hardware=cpu", "train.steps=3", "train.log_every=1", "train.global_batch=8", "train.sample_tokens=3", "optimizer.lr=0.01"]
    model = ["model=huggingface", f"model.source={source}", f"model.task={task}", "model.context=16"]
    return [*(images if task == "image_classification" else text), *steps, *model, f"outputs={folder}", f"run={folder / run}", *more]


@pytest.mark.parametrize(
    ("kind", "task", "pretrained"), [("gpt2", "causal_lm", True), ("bert", "masked_lm", False), ("vit", "image_classification", True)]
)
def test_one_and_two_ranks_learn_alike_and_the_result_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, task: str, pretrained: bool
) -> None:
    source = tmp_path / "saved"
    if pretrained:
        save(source, kind, task)
    else:
        config(kind).save_pretrained(source)
    more = [] if pretrained else ["model.pretrained=null"]
    for ranks in (1, 2):
        assert dml_runner.train(job(tmp_path, source, task, str(ranks), *more, *on_ranks(ranks))).status == "completed"
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=1e-5)
    assert len(losses(tmp_path / "1")) == 3
    capsys.readouterr()
    export_hf(tmp_path / "2", tmp_path / "exported")
    assert ("no tokenizer" in capsys.readouterr().err) == (kind == "gpt2"), "an image needs none"
    model, theirs = dml_runner.load(tmp_path / "2"), getattr(transformers, AUTO[task]).from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        if task == "image_classification":
            images = torch.randn(2, 1, 8, 8)
            assert torch.equal(model({"images": images}), theirs(pixel_values=images).logits)
        else:
            ids = torch.randint(1, 60, (2, 8))
            assert torch.equal(model({"inputs": ids}), theirs(input_ids=ids).logits)


def test_labels_are_exported_by_the_words_of_the_data(tmp_path: Path) -> None:
    """Not by those of the weights that it started from, as many as they may be."""
    source = save(tmp_path / "saved", "bert", "sequence_classification", id2label={0: "x", 1: "y", 2: "z"})
    (tmp_path / "texts.tsv").write_text("".join(f"text {n % 7}\t{('low', 'high', 'odd')[n % 3]}\n" for n in range(60)))
    texts = ["data=labelled_text", f"data.path={tmp_path / 'texts.tsv'}", "data.vocab_size=60"]
    words = [word for word in job(tmp_path, source, "sequence_classification", "run", "strategy=single") if not word.startswith("data")]
    assert dml_runner.train([*words, *texts]).status == "completed"
    export_hf(tmp_path / "run", tmp_path / "exported")
    found = transformers.AutoConfig.from_pretrained(tmp_path / "exported")
    assert (found.num_labels, found.id2label) == (3, {0: "high", 1: "low", 2: "odd"})
    assert found.label2id == {"high": 0, "low": 1, "odd": 2}


@pytest.mark.parametrize("kind", ["llama", "distilbert"])
def test_another_architecture_trains_and_goes_on_from_its_checkpoint(tmp_path: Path, kind: str) -> None:
    config(kind).save_pretrained(tmp_path / "saved")
    task = "causal_lm" if kind == "llama" else "masked_lm"
    for run, steps in (("whole", 6), ("half", 3)):
        dml_runner.train(job(tmp_path, tmp_path / "saved", task, run, "model.pretrained=null", f"train.steps={steps}", "strategy=single"))
    assert dml_runner.train([str(tmp_path / "half"), "train.steps=6", f"run={tmp_path / 'rest'}"]).status == "completed"
    assert losses(tmp_path / "half") + losses(tmp_path / "rest") == losses(tmp_path / "whole")


# --- what is refused -----------------------------------------------------------------------------------------------------


def refused(source: Path, task: str, *more: str, data: DataFacts = DATA) -> list[str]:
    run = compose(words(source, task, *more)).run
    with pytest.raises(ConfigError) as error:
        check_pretrained(run, data) or build_model(run, data, torch.device("meta"))
    return lines(error)


def test_what_does_not_go_together_is_one_line(tmp_path: Path) -> None:
    source = save(tmp_path / "saved", "gpt2", "causal_lm")
    (line,) = refused(source, "causal_lm", data=DataFacts("tokens", 8, 8, 16, 16, 201, 16, {}, ""))
    assert line.startswith("model.source: its vocabulary is smaller than the data's; got 200; allowed at least 201; data.tokenizer=null")
    assert refused(source, "causal_lm", "model.context=33") == ["model.context: longer than the model can see; got 33; allowed 1 to 32"]
    (line,) = refused(source, "masked_lm")
    assert line.startswith("model.task: transformers has no AutoModelForMaskedLM of the kind gpt2; got masked_lm; allowed causal_lm")
    assert refused(source, "causal_lm", "model.frozen=4")[0].startswith("model.frozen: more blocks than the model has; got 4")
    other = save(tmp_path / "bert", "bert", "masked_lm")
    (line,) = refused(source, "causal_lm", f"model.pretrained={other}")
    assert line == f"model.pretrained: weights of another kind of model; got {other}: bert; allowed gpt2"
    wider = save(tmp_path / "wider", "gpt2", "causal_lm", n_embd=32)
    found = refused(source, "causal_lm", f"model.pretrained={wider}")
    assert all(line.startswith("model.pretrained: transformer.") and "has another shape" in line for line in found[:-1])
    source = save(tmp_path / "vit", "vit", "image_classification")
    facts = DataFacts("images", 8, 8, 1, 0, 0, 0, {}, "", 3, (3, 10, 10))
    assert refused(source, "image_classification", data=facts) == [
        "model.source: it sees images of another number of channels; got 1; allowed 3",
        "data.size: images of another size than the model sees; got 10 x 10; allowed 8 x 8",
    ]


def test_a_pickle_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config("gpt2").save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch canary'\ntR.")
    code, said = command(capsys, *job(tmp_path, tmp_path / "old", "causal_lm", "run"))
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith("model.pretrained: holds pickled weights only; they can run code, and are not read; got ")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "transformers cannot read its config.json ("),
        ("{}", "transformers cannot read its config.json ("),
        ('{"model_type": "nobodys"}', "transformers cannot read its config.json ("),
        ('{"model_type": "gpt2", "n_embd": 15, "n_head": 2}', "transformers cannot build it ("),
        ('{"model_type": "t5"}', "it is an encoder with a decoder"),
        ('{"model_type": "gpt2", "quantization_config": {"quant_method": "bitsandbytes"}}', "its weights are quantised"),
    ],
)
def test_a_strange_config_is_one_line(tmp_path: Path, content: str, line: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (said,) = refused(tmp_path, "causal_lm", "model.pretrained=null")
    assert said.startswith(f"model.source: {line}")


def test_code_of_its_author_never_runs(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Evil: ...\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    for kind in ("gpt2", "evil"):
        (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["gpt2"], "model_type": kind, "auto_map": auto}))
        if kind == "gpt2":
            assert type(ours(tmp_path, "causal_lm", "model.pretrained=null").theirs).__name__ == "GPT2LMHeadModel"
        else:
            (said,) = refused(tmp_path, "causal_lm", "model.pretrained=null")
            assert re.match("model.source: transformers cannot read its config.json", said)
    assert not (tmp_path / "canary").exists()
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["gpt2"], "model_type": "gpt2", "auto_map": auto}))
    publication = ours(tmp_path, "causal_lm", "model.pretrained=null").publication()
    assert publication
    assert not {"auto_map", "_name_or_path"} & publication.config.keys()
    with pytest.raises(ConfigError, match=r"model\.source: no weights there; got nowhere/at/all"):
        made("model=huggingface", "model.source=nowhere/at/all", "model.pretrained=null")


@pytest.mark.parametrize(
    "asked", ["kernels-community/flash-attn2", "evils/kernel", "flash_attention_2", {"": "evils/kernel"}, "eager", "sdpa"]
)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_have_kernels_fetched(tmp_path: Path, asked: object, key: str) -> None:
    """What the library would fetch from the hub and run is left out; what it has itself is a matter of taste."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["gpt2"], "model_type": "gpt2", key: asked}))
    theirs = ours(tmp_path, "causal_lm", "model.pretrained=null").theirs
    assert theirs.config._attn_implementation == ("eager" if asked == "eager" else "sdpa")  # type: ignore[union-attr]


# --- the hub -------------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Gives the config.json of every model, and notes who asked."""

    asked: list[str] = []  # noqa: RUF012
    content = b""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.content)

    def _answer(self, body: bytes) -> None:
        self.asked.append(f"{self.command} {self.path}")
        known = self.path.endswith("/config.json")
        self.send_response(200 if known else 404)
        for name, value in (("ETag", '"a1"'), ("X-Repo-Commit", "1" * 40), ("Content-Length", str(len(self.content) if known else 0))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if known else b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""


def test_the_hub_is_asked_once_and_for_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the architecture is wanted; ranks and later commands have the file that the first one saw."""
    Hub.content, Hub.asked = json.dumps({**CONFIGS["gpt2"], "model_type": "gpt2"}).encode(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        for _ in range(2):
            assert ours(Path("some/model"), "causal_lm", "model.pretrained=null").publication()
            asked = [each for each in Hub.asked if "/api/" not in each]  # where the library has a look at the hub itself
            assert asked == [f"{verb} /some/model/resolve/main/config.json" for verb in ("HEAD", "GET")]
        server.shutdown()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = (
        "model.source: no folder of this name, and the hub did not give it (LocalEntryNotFoundError); got some/other; allowed a folder of"
    )
    assert refused(Path("some/other"), "causal_lm", "model.pretrained=null")[0].startswith(line)
