"""`dml eval prompt=...`: a language model goes on with a text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dml_runner import data
from dml_runner.data.base import Written
from dml_runner.data.parts.tokenizer import load_tokenizer
from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import task_of
from dml_runner.launch.eval_words import Prompt
from dml_runner.launch.prepare import profile_of
from dml_runner.launch.trained import Trained, find, model_of
from dml_runner.models.base import Batch, keyed_generator
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.generation import context_of, generate


def go_on(path: Path, prompt: Prompt) -> str:
    """The prompt with what the model of a saved step writes after it; the same for the same seed.

    Raises:
        ConfigError: no sound step is there, the model does not write, or a character of the prompt has no token.
    """
    trained = find(path)
    job, words = trained.job, trained.job.run.model
    if words.objective != "next_token":
        what = f"the run's model={words.name} does not go on with a text"
        raise ConfigError(Problem("prompt", what, got=f"objective {words.objective}", allowed="a language model of the next token"))
    text = _text_of(trained)
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
        context=context_of(words, job.data),
        vocabulary=job.data.vocabulary,
        generator=keyed_generator(prompt.seed, "prompt"),
        temperature=prompt.temperature,
        top_k=prompt.top_k,
    )
    return prompt.text + text.decode(written)


def _text_of(trained: Trained) -> Written:
    """Text to tokens and back as in training: by the tokenizer that the run keeps or, where its data has something else, by the data.

    Raises:
        ConfigError: the data is not made of text, or is gone.
    """
    job = trained.job
    if trained.folder.tokenizer.is_dir():
        return load_tokenizer(trained.folder.tokenizer)
    text = data.open_data(job.run.data, task_of(job.run.model), job.data, job.run.seed)
    if not isinstance(text, Written):
        what = f"the tokens of the run's data={job.run.data.name} stand for no text"
        raise ConfigError(Problem("prompt", what, got=str(trained.folder.path), allowed="a run that was trained on text"))
    return text
