"""`dml eval prompt=...`: a language model goes on with a text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dml_runner import data
from dml_runner.data.base import Written
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import task_of
from dml_runner.launch.eval_words import Prompt
from dml_runner.launch.prepare import profile_of
from dml_runner.launch.trained import find, model_of
from dml_runner.models.base import Batch, keyed_generator
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.generation import generate


def go_on(path: Path, prompt: Prompt) -> str:
    """The prompt with what the model of a saved step writes after it; the same for the same seed.

    Raises:
        ConfigError: no sound step is there, the model does not write, or a character of the prompt has no token.
    """
    trained = find(path)
    job, words = trained.job, trained.job.run.model
    text = data.open_data(job.run.data, task_of(words), job.data, job.run.seed) if words.objective == "next_token" else None
    if not isinstance(text, Written):
        what = f"the run's model={words.name} does not go on with a text"
        raise ConfigError(Problem("prompt", what, got=f"objective {words.objective}", allowed="a language model of the next token"))
    ids = text.encode(prompt.text)
    device = torch.device(profile_of(job.run, None).device)
    model = model_of(trained).to(device)

    def forward(batch: Batch, cache: KeyValueCache) -> Tensor:
        output: Tensor = model({key: value.to(device) for key, value in batch.items()}, cache)
        return output

    written = generate(
        forward,
        ids,
        prompt.tokens,
        context=None if words.streams else words.length or job.data.seq_len,
        vocabulary=job.data.vocabulary,
        generator=keyed_generator(prompt.seed, "prompt"),
        temperature=prompt.temperature,
        top_k=prompt.top_k,
    )
    return prompt.text + text.decode(written)
