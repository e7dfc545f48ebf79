"""Export: a trained model in Hugging Face's form, loaded by transformers with nothing missing, computes the same."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import train
from safetensors import safe_open
from torch import Tensor

import dml_runner
from dml_runner import models
from dml_runner.checkpoint.read import open_step
from dml_runner.errors import ConfigError
from dml_runner.launch.export import export_hf

LLAMA = ("model.norm=rms", "model.mlp=swiglu", "model.positions=rotary", "model.bias=false", "model.tied=false", "model.kv_heads=1")
BERT = ("model=bert", "model.layers=2", "model.hidden=32", "model.heads=2", "model.context=32")


def theirs(folder: Path, auto: str) -> Any:
    """The model that transformers loads, which must miss nothing and know of nothing more."""
    transformers: Any = pytest.importorskip("transformers")
    model, told = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(told.values()), told
    return model.eval()


def agree(ours: Tensor, others: Tensor) -> None:
    """Equal within 1e-5 of the largest value."""
    assert float((ours - others).abs().max()) <= 1e-5 * float(ours.abs().max())


def refusal(path: Path, to: Path) -> str:
    """The one line of an export that is refused."""
    with pytest.raises(ConfigError) as error:
        export_hf(path, to)
    (problem,) = error.value.problems
    return str(problem)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained GPT-2."""
    return train(tmp_path_factory.mktemp("gpt"), "train.steps=5", "optimizer.lr=1e-2", "checkpoint.every=2")


# --- gpt -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), LLAMA], ids=["GPT-2", "Llama"])
def test_a_trained_gpt_computes_the_same_in_transformers(shape: tuple[str, ...], tmp_path: Path) -> None:
    folder = train(tmp_path, "train.steps=5", "optimizer.lr=1e-2", *shape)
    export_hf(folder, tmp_path / "hf")
    ids = torch.arange(32)[None] % 80
    with torch.no_grad():
        agree(dml_runner.load(folder)({"inputs": ids}), theirs(tmp_path / "hf", "AutoModelForCausalLM")(ids).logits)
    again = train(tmp_path, f"model.pretrained={tmp_path / 'hf'}", *shape, "train.steps=1", "optimizer.lr=1e-30", run="again")
    before, after = dml_runner.load(folder).state_dict(), dml_runner.load(again).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_folder_has_what_transformers_reads_and_no_more(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    (tmp_path / "hf").mkdir()  # an empty folder may be there
    export_hf(gpt, tmp_path / "hf")
    assert capsys.readouterr().err == "no tokenizer is exported: the run's is none of the tokenizers library\n"
    assert sorted(os.listdir(tmp_path)) == ["hf"]
    assert sorted(os.listdir(tmp_path / "hf")) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["architectures"], config["model_type"], config["n_positions"]) == (["GPT2LMHeadModel"], "gpt2", 32)
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_older_step_is_exported_by_its_name(gpt: Path, tmp_path: Path) -> None:
    step = gpt / "checkpoints" / "step-00000002"
    export_hf(step, tmp_path / "hf")
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("transformer.wte.weight"), open_step(step).read("model/tokens.weight"))


# --- bert ----------------------------------------------------------------------------------------------------------------


def labelled(folder: Path) -> list[str]:
    """The words of a classifier of two kinds of text."""
    path = folder / "texts.tsv"
    rows = [f"{'good fine nice' if n % 2 else 'bad poor sad'} thing number {n}\t{'yes' if n % 2 else 'no'}" for n in range(100)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return [*BERT, "model.head=classifier", "data=labelled_text", f"data.path={path}", "data.text_column=text", "data.label_column=label"]


def test_a_classifier_from_a_run_of_hidden_tokens_computes_the_same_in_transformers(tmp_path: Path) -> None:
    """The head is swapped, the tokenizer goes along, and both stand in what is exported."""
    transformers: Any = pytest.importorskip("transformers")
    hidden = train(tmp_path, *BERT, "data.tokenizer=wordpiece", "data.vocab_size=200", "train.steps=5", run="hidden")
    assert (hidden / "tokenizer" / "tokenizer.json").is_file()
    folder = train(tmp_path, *labelled(tmp_path), "data.seq_len=null", f"model.pretrained={hidden}", "train.steps=5", run="classifier")
    assert (folder / "tokenizer" / "tokenizer.json").read_bytes() == (hidden / "tokenizer" / "tokenizer.json").read_bytes()
    export_hf(folder, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    batch = tokenizer(["a good thing", "number 7 and a bad one, or two"], return_tensors="pt", padding=True)
    with torch.no_grad():
        other = theirs(tmp_path / "hf", "AutoModelForSequenceClassification")
        ours = dml_runner.load(folder)({"inputs": batch["input_ids"], "mask": batch["attention_mask"].bool()})
        agree(ours, other(**batch).logits)
    assert (other.config.id2label, other.config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    assert {each["label"] for each in transformers.pipeline("text-classification", other, tokenizer=tokenizer)(["a good thing"])} <= {
        "no",
        "yes",
    }
    export_hf(hidden, tmp_path / "mlm")
    with torch.no_grad():
        own = dml_runner.load(hidden)({"inputs": batch["input_ids"], "mask": batch["attention_mask"].bool()})
        found = theirs(tmp_path / "mlm", "AutoModelForMaskedLM")(**batch).logits
    real = batch["attention_mask"].bool()
    agree(own[real], found[real])


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_left_alone(gpt: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert refusal(gpt, tmp_path / "full") == f"to: the folder is not empty; got {tmp_path / 'full'}; allowed a new folder"
    assert refusal(gpt, tmp_path / "full" / "mine") == f"to: is a file; got {tmp_path / 'full' / 'mine'}; allowed a new folder"
    assert refusal(gpt, tmp_path / "full" / "mine" / "x") == (
        f"to: cannot be written: Not a directory; got {tmp_path / 'full' / 'mine' / 'x'}; allowed a new folder"
    )
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_a_shape_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    folder = train(tmp_path, "model.bias=false", "train.steps=1")
    assert refusal(folder, tmp_path / "hf") == (
        "export: transformers has no model of this shape; of model=gpt it has the shapes of GPT-2 and of Llama; "
        f"got {folder}; dml_runner.load gives the model to Python"
    )
    assert not (tmp_path / "hf").exists()


def test_a_family_that_transformers_lacks_is_refused_by_name(tmp_path: Path) -> None:
    folder = train(tmp_path, "model=rnn", "model.hidden=16", "model.bptt=16", "train.steps=1")
    assert refusal(folder, tmp_path / "hf") == (
        f"export: transformers has no model of the kind that model=rnn is; got {folder}; dml_runner.load gives the model to Python"
    )


def test_no_run_and_no_step_are_refused(gpt: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        line = f"{path / 'job.yaml'}: cannot be read: No such file or directory; a run folder holds a job.yaml"
        assert refusal(path, tmp_path / "hf") == line
    assert refusal(gpt / "checkpoints" / "step-00000003", tmp_path / "hf").startswith("run: no such step folder")


@pytest.mark.parametrize("family", ["elmo", "rnn"])
def test_no_publication_means_none(family: str) -> None:
    """Those that are refused by name have said nothing about a form of transformers'."""
    module = importlib.import_module(f"dml_runner.models.{family}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, models.base.Model)]
    assert all(kind.publication is models.base.Model.publication for kind in kinds)
