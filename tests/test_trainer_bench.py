"""The measurement beside the Trainer of the transformers library: its words, and that both sides do the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import one_core
from publishing import CLASSIFIER, SHAPES, made, publish
from safetensors.torch import load_file

from dml_runner.bench import trainer, trainer_sides
from dml_runner.bench.frameworks import installed
from dml_runner.bench.trainer_sides import WARM_UP, Clock, Job, by_runner, by_trainer, training_samples
from dml_runner.bench.trainer_words import TrainerWords, trainer_words
from dml_runner.cli import main

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "fine", "dull", "film", "such", "moving", "story", "no", "at", "all", "and", "end", ","]
VOCABULARY = [*SPECIAL, *WORDS, *(f"word{number}" for number in range(50 - len(SPECIAL) - len(WORDS)))]
needs_trainer = pytest.mark.skipif(not all(map(installed, trainer.NEEDED)), reason="pip install 'dml_runner[bench,huggingface]'")


def write_recipe(folder: Path) -> Path:
    """Fine-tuning of a very small BERT whose weights are published beside it, in Hugging Face's form."""
    weights = publish(folder / "weights", made(*SHAPES["bert"], *CLASSIFIER))
    (weights / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    head = [
        "config",
        "override model: bert",
        "override data: labelled_text",
        "override hardware: cpu",
        "override lr_schedule: constant",
        "_self_",
    ]
    shape = f"layers: 2, hidden: 32, heads: 4, context: 16, vocab_size: 50, head: classifier, dropout: 0.0, pretrained: {weights}"
    job = [
        f"model: {{{shape}}}",
        'data: {path: "???", eval_path: "???"}',
        "optimizer: {lr: 5.0e-3, eps: 1.0e-4}",
        f"outputs: {folder / 'outputs'}",
    ]
    job += ["lr_schedule: {warmup_steps: 0}", "train: {steps: 24, global_batch: 8, clip_norm: 1.0, log_every: 2}"]
    path = folder / "recipe.yaml"
    path.write_text("\n".join(["defaults:", *(f"  - {each}" for each in head), *job]) + "\n")
    return path


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The words that are needed."""
    texts = [("a fine film", 2), ("a film", 1), ("such a moving story , and such a fine end", 2), ("no story at all , and no end", 0)]
    for name, rows in (("train", 64), ("dev", 16)):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{texts[row % 4][0]}\t{texts[row % 4][1]}\n" for row in range(rows)))
    return [f"data={tmp_path / 'train.tsv'}", f"eval={tmp_path / 'dev.tsv'}", f"recipe={write_recipe(tmp_path)}"]


def test_words_and_their_defaults(given: list[str], tmp_path: Path) -> None:
    assert trainer_words(given) == TrainerWords(tmp_path / "train.tsv", tmp_path / "dev.tsv", tmp_path / "recipe.yaml")
    asked = trainer_words([*given, "steps=7", "pairs=3", "accuracy=true", "format=json"])
    assert (asked.steps, asked.pairs, asked.accuracy, asked.form) == (7, 3, True, "json")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "trainer", "pair=3", "accuracy=yes", "steps=1", "to=gone/page.md", "format=xml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "pair: no such word; allowed data=, eval=, recipe=, steps=, pairs=, accuracy=, to=, format=; did you mean pairs?",
        "accuracy: is neither yes nor no; got 'yes'; allowed true, false",
        "data: is needed; got nothing; allowed data=FILE",
        "eval: is needed; got nothing; allowed eval=FILE",
        "recipe: nothing is there; got recipes/bert_sst2.yaml",
        "steps: not a count; got '1'; allowed 2 or more",
        "to: its folder is not there; got gone/page.md",
        "format: no such form; got 'xml'; allowed table, json",
    ]


def test_what_is_not_installed_is_named(given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(trainer, "installed", lambda name: name != "accelerate")
    assert main(["bench", "trainer", *given]) == 2
    line = "bench: the Trainer needs what is not installed; got accelerate; pip install 'dml_runner[bench,huggingface]'"
    assert capsys.readouterr().err.splitlines() == [line]


@needs_trainer
def test_a_recipe_that_both_sides_cannot_do_is_refused(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (
        recipe.read_text()
        .replace("  - _self_", "  - override optimizer: sgd\n  - _self_")
        .replace("head: classifier", "head: mlm")
        .replace(", eps: 1.0e-4", "")
    )
    recipe.write_text(text.replace(f"pretrained: {tmp_path / 'weights'}", "pretrained: null"))
    assert main(["bench", "trainer", *given]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "model.pretrained: is not what both sides can do; got None; allowed published weights",
        "optimizer: is not what both sides can do; got sgd; allowed adamw",
        "model.head: is not what both sides can do; got mlm; allowed classifier",
    ]


def embedding_after(job: Job, side: Callable[[Job, Clock], float]) -> torch.Tensor:
    """The token embedding with which a side ends."""
    seen: list[torch.optim.Optimizer] = []

    class Watching(Clock):
        def __call__(self, *arguments: object) -> None:
            super().__call__()
            seen.extend(each for each in arguments if isinstance(each, torch.optim.Optimizer))

    side(job, Watching())
    (embedding,) = [p for group in seen[-1].param_groups for p in group["params"] if p.shape == (len(VOCABULARY), 32)]
    assert len(seen) == job.layout.steps
    return embedding.detach()


@needs_trainer
def test_both_sides_train_the_same(given: list[str]) -> None:
    """From the same weights, the head's among them, in the same batches without dropout: the same token embedding."""
    job = trainer.prepare(trainer_words(given))
    samples = training_samples(job)
    assert len(samples) == 24 * 8
    batch = job.open().train_batch(job.open().order(job.run.seed).step(2, 8))
    assert [sample["labels"] for sample in samples[8:16]] == batch["targets"].tolist()
    kept = [ids[mask].tolist() for ids, mask in zip(batch["inputs"], batch["mask"], strict=True)]
    assert [sample["input_ids"] for sample in samples[8:16]] == kept
    with one_core():
        ours, theirs = (embedding_after(job, side) for side in (by_runner, by_trainer))
    began = load_file(job.weights / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert (ours - began).abs().max() > 2e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
@needs_trainer
def test_the_table_and_json(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    with one_core():
        assert main(["bench", "trainer", *given, "steps=3", "pairs=2", "accuracy=true", f"to={page}", "format=json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["sides"]) == set(trainer.SIDES)
    assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert (result["full"]["updates"], result["full"]["samples"]) == (24, 16)
    assert len({side["accuracy"] for side in result["full"]["sides"].values()}) == 1, "from the same head, without dropout"
    table = page.read_text().splitlines()
    assert (table[0], table[-1]) == ("<!-- trainer -->", "<!-- /trainer -->")
    assert table[1:3] == ["| | ms a step | 95 % interval | accuracy |", "|---|---|---|---|"]
    assert table[5].startswith("| ours / theirs | ")
    assert table[5].endswith(" +0.000 |")


def test_the_clock_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([*range(WARM_UP), WARM_UP - 1 + 0.5, WARM_UP])
    monkeypatch.setattr(trainer_sides.time, "perf_counter", lambda: float(next(now)))
    clock = Clock()
    for _ in range(WARM_UP + 2):
        clock()
    assert clock.step_ms == pytest.approx(500.0)
