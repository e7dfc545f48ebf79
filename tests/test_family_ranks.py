"""Every family gives the loss curve of one process on 2 and 3 ranks: promise 1, for what each of them learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import english, losses, on_ranks, read, rows, train

import dml_runner

TINY = ("train.steps=50", "train.global_batch=12", "optimizer.lr=1e-3", "train.metrics=[]")
WIDTH = ("model.layers=2", "model.hidden=16")
TEXT = ("data.tokenizer=null", "data.seq_len=null", "data.vocab_size=200")
FAMILIES = {
    "bert": ("model=bert", *WIDTH, "model.heads=2", "model.context=16", *TEXT),
    "elmo": ("model=elmo", *WIDTH, "model.projection=8", "model.filters=[4,4]", "model.word_length=8", "model.context=8", *TEXT),
    "rnn": ("model=rnn", *WIDTH, "model.bptt=8", *TEXT),
    "gru": ("model=rnn", "model.cell=gru", *WIDTH, "model.bptt=8", *TEXT),
    "gpt classifier": ("model=gpt_tiny", "model.head=classifier"),
    "bert classifier": ("model=bert", *WIDTH, "model.heads=2", "model.context=16", "model.head=classifier"),
    "elmo classifier": ("model=elmo", *WIDTH, "model.projection=8", "model.filters=[4,4]", "model.word_length=8", "model.head=classifier"),
}


def labelled(folder: Path) -> list[str]:
    """Lines of English, each with whether it is longer than most, as labelled text."""
    lines = [line.replace("\t", " ").strip() for line in english(20_000).splitlines() if len(line.split()) > 2]
    (folder / "lines.tsv").write_text("".join(f"{line}\t{int(len(line) > 60)}\n" for line in lines))
    return ["data=labelled_text", f"data.path={folder / 'lines.tsv'}", "data.seq_len=null", "data.vocab_size=200"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_alike_on_one_two_and_three_ranks(tmp_path: Path, family: str) -> None:
    words = [*FAMILIES[family], *TINY, *(labelled(tmp_path) if "classifier" in family else ())]
    curves = [losses(train(tmp_path, *words, *on_ranks(ranks), run=f"run-{ranks}")) for ranks in (1, 2, 3)]
    assert len(curves[0]) == 50
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm",
    [("model.norm=batch", "data.flip=true", "data.pad=1"), pytest.param(("model.norm=group", "model.groups=4"), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_resnet_learns_alike_on_one_two_and_three_ranks(tmp_path: Path, norm: tuple[str, ...]) -> None:
    """Batch norm takes its statistics over all ranks, here over the whole batch each time; the held-out figures agree too."""
    words = ["model=resnet", "model.width=8", "model.depths=[1,1]", "data=digits", "hardware=cpu", "train.log_every=1", *norm, *TINY[:3]]
    runs = [tmp_path / f"run-{ranks}" for ranks in (1, 2, 3)]
    for ranks, run in enumerate(runs, start=1):
        dml_runner.train([*words, *on_ranks(ranks), f"run={run}", f"outputs={tmp_path}"])
    for run in runs[1:]:
        assert losses(run) == pytest.approx(losses(runs[0]), abs=1e-4)
        assert read(run, "summary.json")["eval"] == pytest.approx(read(runs[0], "summary.json")["eval"], abs=1e-3)


def test_hidden_tokens_weigh_alike_however_they_fall_to_ranks(tmp_path: Path) -> None:
    """The mean is over all hidden tokens of the step, though ranks have more or fewer of them."""
    words = [*FAMILIES["bert"], *TINY, "train.micro_batch=1"]
    one, three = (losses(train(tmp_path, *words, *on_ranks(ranks), run=f"run-{ranks}")) for ranks in (1, 3))
    assert three == pytest.approx(one, abs=1e-4)
    assert all(row["tokens_per_s"] > 0 for row in rows(tmp_path / "run-1"))
