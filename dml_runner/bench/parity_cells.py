"""What ``dml bench parity`` compares: layouts, families and ways to recompute, as words of jobs of a few thousand weights."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RANKS = 4
"""Most ranks that a layout has."""
STEPS = 50
CHARACTERS = 20_000

JOB = ("hardware=cpu", "train.sample_tokens=0", "train.log_every=1", "train.metrics=[]", "train.global_batch=12", "train.precision=fp32")
ADAMW = ("optimizer=adamw", "optimizer.lr=1e-3")
SGD = ("optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0.9")
DROPOUT = "model.dropout=0.1"


def _on(devices: int, strategy: str, *words: str) -> tuple[str, ...]:
    return (f"strategy={strategy}", f"hardware.devices_per_node={devices}", *(f"strategy.{word}" for word in words))


LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "single": ("strategy=single",),
    "all_reduce_2": _on(2, "all_reduce", "bucket_mb=0.005"),
    "parameter_server": _on(2, "parameter_server", "servers=1", "bucket_mb=0.005"),
    "pipeline_2_naive": _on(2, "pipeline", "schedule=naive"),
    "pipeline_2_gpipe": _on(2, "pipeline", "schedule=gpipe"),
    "pipeline_2_1f1b": _on(2, "pipeline", "schedule=1f1b"),
    "pipeline_2_interleaved": _on(2, "pipeline", "schedule=interleaved_1f1b"),
    "pipeline_2_zero_bubble": _on(2, "pipeline", "schedule=zero_bubble"),
    "pipeline_4_uneven": _on(4, "pipeline", "boundaries=[1,3,4]", "microbatches=4"),
    "pipeline_2x2": _on(4, "pipeline", "stages=2", "microbatches=3"),
    "tensor_2": _on(2, "tensor"),
    "tensor_2_sequence": _on(2, "tensor", "sequence_parallel=true"),
    "tensor_3": _on(3, "tensor"),
    "hybrid_2x2x1": _on(4, "hybrid", "pipeline=2", "microbatches=3"),
    "hybrid_1x2x2": _on(4, "hybrid", "pipeline=2", "tensor=2", "microbatches=2"),
    "hybrid_2x1x2": _on(4, "hybrid", "tensor=2"),
    "hybrid_2x2x1_zero": _on(4, "hybrid", "pipeline=2", "zero_stage=1", "bucket_mb=0.005", "microbatches=3"),
    "hybrid_1x2x2_sequence": _on(4, "hybrid", "pipeline=2", "tensor=2", "sequence_parallel=true", "microbatches=2"),
}
"""Name -> words. Of a hybrid the axes are data x pipeline x tensor."""

_HEADS = ("model.hidden=24", "model.heads=6", "model.layers=5", "model.context=12")
_ELMO = ("model.hidden=16", "model.layers=5", "model.projection=8", "model.filters=[4,4]", "model.word_length=8")
_TEXT = ("data=text", "data.path={folder}/text.txt", "data.tokenizer=null", "data.seq_len=null", "data.vocab_size=200")
_LABELLED = ("data=labelled_text", "data.path={folder}/lines.tsv", "data.seq_len=null", "data.vocab_size=200", "model.head=classifier")
_IMAGES = ("data=synthetic", "data.size=8", "data.samples=300")

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "gpt": ("model=gpt", *_HEADS, *_TEXT),
    "bert": ("model=bert", *_HEADS, *_TEXT),
    "elmo": ("model=elmo", *_ELMO, "model.context=8", *_TEXT),
    "rnn": ("model=rnn", "model.hidden=16", "model.layers=5", "model.bptt=8", *_TEXT),
    "resnet": ("model=resnet", "model.width=8", "model.depths=[2,3]", "model.norm=group", "model.groups=4", *_IMAGES),
    "gpt_classifier": ("model=gpt", *_HEADS, *_LABELLED),
    "bert_classifier": ("model=bert", *_HEADS, *_LABELLED),
    "elmo_classifier": ("model=elmo", *_ELMO, *_LABELLED),
}
"""Name -> words, five blocks each; ``{folder}`` is where ``write_texts`` wrote."""

RECOMPUTE: Mapping[str, tuple[str, ...]] = {
    "none": ("recompute=none",),
    "full": ("recompute=full",),
    "full_2": ("recompute=full", "recompute.every=2"),
    "selective": ("recompute=selective",),
}
"""Name -> words."""


@dataclass(frozen=True)
class Cell:
    """A job of the matrix, by the names of its words."""

    layout: str
    family: str
    recompute: str = "none"

    def __str__(self) -> str:
        return " ".join((self.layout, self.family, *(() if self.recompute == "none" else (self.recompute,))))

    def words(self, folder: Path, *more: str) -> tuple[str, ...]:
        """The words of its job, ``more`` last."""
        family = (word.replace("{folder}", str(folder)) for word in FAMILIES[self.family])
        return (*JOB, f"outputs={folder}", *family, *LAYOUTS[self.layout], *RECOMPUTE[self.recompute], *more)


def ways(family: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The ways to recompute that a family is crossed with: a classifier has the blocks of the family it is of, so it keeps all."""
    return tuple(name for name in asked if name == "none" or "classifier" not in family)


def write_texts(folder: Path) -> None:
    """A text, and lines each with whether it is a long one, from the help topics that ship with Python."""
    text = "\n".join(pydoc_data.topics.topics.values())[:CHARACTERS]
    lines = [line.replace("\t", " ").strip() for line in text.splitlines() if len(line.split()) > 2]
    (folder / "text.txt").write_text(text)
    (folder / "lines.tsv").write_text("".join(f"{line}\t{int(len(line) > 60)}\n" for line in lines))
