"""A trained model in Hugging Face's form: a folder that ``transformers`` loads."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dml_runner.errors import ConfigError, Problem
from dml_runner.files import sync_folder, write_json
from dml_runner.launch.trained import Trained, find, model_of
from dml_runner.models.base import Model, Publication
from dml_runner.models.parts.publication import labels, to_foreign
from dml_runner.pretrained import CONFIG
from dml_runner.schema.model import Gpt

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
SPECIAL = {
    "unk_token": ("[UNK]", "<unk>", "<|unk|>"),
    "pad_token": ("[PAD]", "<pad>", "<|pad|>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<s>", "<|begin_of_text|>"),
    "eos_token": ("</s>", "<|endoftext|>", "<|end_of_text|>"),
}
"""What transformers calls a token of a special meaning, and how such tokens are written."""


def export_hf(path: Path, to: Path) -> None:
    """Write the model of a run folder's newest sound step, or of the very step named, to the new folder ``to``.

    The folder holds config.json, model.safetensors and, where the run was trained with a tokenizer of the tokenizers library, what
    transformers needs of that. A classifier's labels have the words that they have in the data, where those are known. It appears
    whole or not at all.

    Raises:
        ConfigError: nothing sound was saved there, transformers has no such model, or the folder is not empty or cannot be written.
    """
    to = Path(os.path.abspath(to))
    trained = find(path)
    model = model_of(trained)
    publication = model.publication()
    if publication is None:
        raise ConfigError(_unpublished(trained, path))
    _refuse_full(to)
    half = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        half.mkdir(parents=True)
        _write(half, trained, model, publication)
        sync_folder(half)
        os.rename(half, to)
        sync_folder(to.parent)
    except OSError as error:
        raise ConfigError(Problem("to", f"cannot be written: {error.strerror}", got=str(to), allowed="a new folder")) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if trained.job.run.model.reads != "images" and not (to / TOKENIZER).is_file():
        print("no tokenizer is exported: the run's is none of the tokenizers library", file=sys.stderr, flush=True)


def _unpublished(trained: Trained, path: Path) -> Problem:
    words = trained.job.run.model
    what = f"transformers has no model of the kind that model={words.name} is"
    if isinstance(words, Gpt):
        what = "transformers has no model of this shape; of model=gpt it has the shapes of GPT-2 and of Llama"
    return Problem("export", what, got=str(path), hint="dml_runner.load gives the model to Python")


def _refuse_full(to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise ConfigError(Problem("to", "is a file", got=str(to), allowed="a new folder"))
    if to.is_dir() and any(to.iterdir()):
        raise ConfigError(Problem("to", "the folder is not empty", got=str(to), allowed="a new folder"))


def _write(folder: Path, trained: Trained, model: Model, publication: Publication) -> None:
    config = dict(publication.config) | {"dtype": "float32"}
    if trained.job.run.model.objective == "classify" and trained.job.data.labels:
        config |= labels(len(config["id2label"]), trained.job.data.labels)
    tokenizer = trained.folder.tokenizer / TOKENIZER
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, folder / TOKENIZER)
        tokens = _tokens(tokenizer)
        special = _special(tokens)
        length = trained.job.run.model.length
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
            | ({} if length is None else {"model_max_length": length}),
        )
        config |= {f"{name}_id": tokens[token] for name, token in special.items() if name in ("pad_token", "bos_token", "eos_token")}
    write_json(folder / CONFIG, config)
    save_file(to_foreign(publication, model.state_dict()), folder / WEIGHTS, metadata={"format": "pt"})


def _tokens(path: Path) -> Mapping[str, int]:
    """Every token of a tokenizer.json, with its number."""
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_str(path.read_text()).get_vocab(with_added_tokens=True)
    return found


def _special(tokens: Mapping[str, int]) -> dict[str, Any]:
    """The tokens of special meaning, by what transformers calls them."""
    found = {name: next((token for token in written if token in tokens), None) for name, written in SPECIAL.items()}
    return {name: token for name, token in found.items() if token is not None}
