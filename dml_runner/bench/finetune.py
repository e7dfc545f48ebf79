"""``dml bench finetune``: what pre-training is worth to bert, elmo and gpt.

Each family is pre-trained by its recipe, or taken from a run; then it learns the labels of texts from those weights, and the same
shape learns them from scratch, on the same texts in the same batches for as many updates. Each run is written down as it ends: a
measurement that is broken off goes on with ``resume=FOLDER``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml_runner.bench.finetune_runs import Finished, chances, finished, shape, trained
from dml_runner.bench.finetune_words import NAME, FinetuneWords, finetune_words
from dml_runner.bench.machine import machine, told
from dml_runner.bench.page import write_page

RATES = {"bert": 1e-3, "elmo": 2e-3, "gpt": 1e-3}
"""Peak learning rate of each family, after its pre-training and from scratch alike: at elmo's, a BERT of this depth learns nothing."""
WARM_UP = 0.1
"""Share of the updates in which the rate rises."""
DROPOUT = 0.1
CONTEXT = {"elmo": {"context": "64"}}
"""ELMo's weights know no length: texts need not be cut to the 20 words of its pre-training."""


def measure(words: Sequence[str]) -> str:
    """The result as text that ends with a newline: a table, or JSON; and the table in the page that was asked for.

    Raises:
        ConfigError: a word is wrong.
        DmlError: a run failed, or was ended from outside.
    """
    asked = finetune_words(words)
    folder = asked.resume or asked.outputs / "bench" / f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"in {folder}; broken off, it goes on with resume={folder}")
    rows = [_row(asked, folder, family) for family in asked.only]
    samples, frequent = chances(folder / f"{asked.only[0]}-finetuned")
    result = {"steps": asked.steps, "batch": asked.batch, "eval_samples": samples, "most_frequent": frequent, "families": rows}
    result |= {"machine": machine(), "folder": str(folder)}
    text, table = json.dumps(result, indent=2) + "\n", _table(result)
    (folder / "result.json").write_text(text)
    if asked.page is not None:
        write_page(asked.page, NAME, table)
    return text if asked.form == "json" else table


def _row(asked: FinetuneWords, folder: Path, family: str) -> dict[str, Any]:
    """One family: pre-trained, fine-tuned, and from scratch."""
    if family in asked.runs:
        origin = finished(asked.runs[family])
    else:
        origin = trained(folder, f"{family}-pretrained", [str(asked.recipe(family)), "checkpoint.every=null", "train.sample_tokens=0"])
    job = _words(asked, family, origin)
    tuned = trained(folder, f"{family}-finetuned", [*job, f"model.pretrained={origin.folder}"])
    fresh = trained(folder, f"{family}-scratch", [*job, "model.pretrained=null"])
    return {
        "family": family,
        "parameters": tuned.parameters,
        "lr": RATES[family],
        "pretrain_s": origin.wall_s,
        "pretrain_steps": origin.steps,
        "finetune_s": tuned.wall_s,
        "accuracy": tuned.accuracy,
        "scratch_s": fresh.wall_s,
        "scratch_accuracy": fresh.accuracy,
    }


def _words(asked: FinetuneWords, family: str, origin: Finished) -> list[str]:
    """The job of learning labels, but for what it starts from; the origin's shape, and its tokenizer."""
    tokens = "word" if family == "elmo" else str(origin.folder / "tokenizer")
    return [
        f"model={family}",
        *(f"model.{key}={value}" for key, value in (shape(origin) | CONTEXT.get(family, {})).items()),
        "model.head=classifier",
        f"model.dropout={DROPOUT}",
        "data=labelled_text",
        f"data.path={asked.data}",
        f"data.eval_path={asked.held_out}",
        f"data.tokenizer={tokens}",
        "hardware=cpu",
        "lr_schedule=linear",
        f"lr_schedule.warmup_steps={round(WARM_UP * asked.steps)}",
        "lr_schedule.final_ratio=0",
        f"optimizer.lr={RATES[family]}",
        "optimizer.weight_decay=0.01",
        "optimizer.beta2=0.999",
        f"train.steps={asked.steps}",
        f"train.global_batch={asked.batch}",
        "train.clip_norm=1",
        "train.log_every=20",
        "checkpoint.every=null",
    ]


def _table(result: dict[str, Any]) -> str:
    lines = [
        "| Family | Parameters | Pre-training | Fine-tuning | Accuracy | From scratch | Gain | Rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["families"]:
        gain = row["accuracy"] - row["scratch_accuracy"]
        lines.append(
            f"| {row['family']} | {row['parameters']:,} | {row['pretrain_s']:.0f} s | {row['finetune_s']:.0f} s | {row['accuracy']:.3f} |"
            f" {row['scratch_accuracy']:.3f} | {gain:+.3f} | {row['lr']:g} |"
        )
    samples, frequent, here = result["eval_samples"], result["most_frequent"], result["machine"]
    error = math.sqrt(0.75 * 0.25 / samples)
    lines += [
        "",
        f"{result['steps']} updates of {result['batch']} texts, fine-tuned and from scratch; accuracy of {samples} held-out texts, of which"
        f" {frequent:.3f} have the more frequent label; standard error about {error:.3f}. Seconds of a command's own time.",
        "",
        told(here, threads=True) + ".",
    ]
    return "\n".join(lines) + "\n"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
