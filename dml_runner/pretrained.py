"""Weights to start from: where a word such as ``package:NAME`` leads, and the tokenizer that comes with them."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from dml_runner.errors import ConfigError, Problem
from dml_runner.facts import Task, task_of
from dml_runner.run import Run

KEY = "model.pretrained"
PACKAGE = "package:"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
ALLOWED = "a folder of safetensors, package:NAME, a run folder, or an id on the hub"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def locate(word: str) -> Path:
    """Where the weights called ``word`` are, as an absolute path.

    Args:
        word: a folder with a .safetensors file, or with several and their index; such a file; a run folder or a step in it;
            ``package:NAME``, for the one folder of weights of an installed package, which is not imported; or an id on the
            Hugging Face hub, whose files are fetched once.

    Raises:
        ConfigError: nothing is there, or nothing that can be read without running code of its author.
    """
    if word.startswith(PACKAGE):
        return _in_package(word)
    path = Path(os.path.abspath(Path(word).expanduser()))
    if path.is_file() and path.suffix in PICKLED:
        raise _pickled(path)
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir():
        return path if run_of(path) is not None else _checked(path)
    if path.exists() or not HUB_ID.fullmatch(word) or word.endswith((".safetensors", *PICKLED)):
        raise ConfigError(Problem(KEY, "no weights there", got=word, allowed=ALLOWED))
    return _from_hub(word)


def locate_config(word: str) -> Path:
    """The folder with the config.json of the model called ``word``, as ``locate`` has it but that no weights need be there.

    Of an id on the hub that file alone is fetched, and never again: every rank builds the model that the first command saw, whatever
    becomes of the id, and asks nobody. Fetching weights brings it up to date.

    Raises:
        ConfigError: there is none.
    """
    path = Path(os.path.abspath(Path(word).expanduser()))
    if (path / CONFIG).is_file():
        return path
    if path.exists() or word.startswith(PACKAGE) or not HUB_ID.fullmatch(word):
        path = locate(word)
        if (path / CONFIG).is_file():
            return path
        raise ConfigError(Problem(KEY, f"holds no {CONFIG} of the transformers library", got=str(path)))
    return _config_from_hub(word)


def run_of(path: Path) -> Path | None:
    """The run folder that ``path`` is, or is a step of; None: it is neither."""
    if path.parent.name == "checkpoints" and (path.parent.parent / "job.yaml").is_file():
        return path.parent.parent
    return path if (path / "job.yaml").is_file() else None


def tokenizer_of(path: Path) -> str | None:
    """The tokenizer that goes with weights at ``path``: a file beside them, or the folder that a run keeps; None: there is none."""
    run = run_of(path)
    if run is not None:
        kept = run / "tokenizer"
        return str(kept) if kept.is_dir() else None
    folder = path if path.is_dir() else path.parent
    return next((str(folder / name) for name in TOKENIZERS if (folder / name).is_file()), None)


def task_for(run: Run, kept: Path | None = None) -> Task:
    """What the job's model wants of its data, read with the tokenizer of the weights it starts from, if they have one.

    Args:
        run: the job.
        kept: a run folder whose own tokenizer will do where those weights are gone: what continues needs them no more.

    Raises:
        ConfigError: there are no such weights.
    """
    word = run.model.pretrained
    if word is None:
        return task_of(run.model)
    try:
        origin = locate(word)
    except ConfigError:
        if kept is None or run_of(kept) is None:
            raise
        origin = kept
    return task_of(run.model, tokenizer_of(origin))


def _checked(folder: Path) -> Path:
    """``folder``, if it holds weights."""
    if _holds_weights(folder):
        return folder
    pickled = sorted(path for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise _pickled(folder)
    raise ConfigError(Problem(KEY, "holds no .safetensors file and no run", got=str(folder), allowed=ALLOWED))


def _holds_weights(folder: Path) -> bool:
    return (folder / INDEX).is_file() or any(folder.glob("*.safetensors"))


def _pickled(path: Path) -> ConfigError:
    what = "holds pickled weights only; they can run code, and are not read"
    hint = "let their author, or save_pretrained of transformers, write them as safetensors"
    return ConfigError(Problem(KEY, what, got=str(path), allowed="safetensors", hint=hint))


def package_folders(word: str, key: str) -> list[Path]:
    """The folders of the installed package that ``word``, ``package:NAME``, means; it is not imported.

    Raises:
        ConfigError: it is not installed; ``key`` is what the word stands under.
    """
    name = word.removeprefix(PACKAGE)
    module = name.replace("-", "_")
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except ValueError:  # a module of this process that no file describes
        spec = None
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    if not places:
        raise ConfigError(Problem(key, "no such package is installed", got=word, hint=f"pip install {name}"))
    return places


def _in_package(word: str) -> Path:
    places = package_folders(word, KEY)
    found = sorted({path.parent for place in places for path in place.rglob(CONFIG) if _holds_weights(path.parent)})
    if len(found) == 1:
        return found[0].absolute()
    if not found:
        what = f"the package has no folder with {CONFIG} and .safetensors"
        raise ConfigError(Problem(KEY, what, got=word, allowed=ALLOWED))
    listed = ", ".join(map(str, found))
    raise ConfigError(Problem(KEY, "the package has several folders of weights", got=word, allowed=f"one of them: {listed}"))


def _config_from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, CONFIG, local_files_only=True)).parent
    except (OSError, ValueError):  # it was not fetched before
        pass
    try:
        return Path(hf_hub_download(name, CONFIG, library_name="dml_runner")).parent
    except (OSError, ValueError) as error:
        raise _not_given(name, error) from None


def _not_given(name: str, error: Exception) -> ConfigError:
    what = f"no folder of this name, and the hub did not give it ({type(error).__name__})"
    return ConfigError(Problem(KEY, what, got=name, allowed=ALLOWED))


def _from_hub(name: str) -> Path:
    """The newest snapshot of a repository on the hub, or where there is no network the one fetched before."""
    from huggingface_hub import snapshot_download

    try:
        # what stands in its subfolders, and under a second name, are the same weights in other forms
        folder = snapshot_download(
            name, allow_patterns=["*.json", "*.txt", "*.safetensors"], ignore_patterns=["*/*", "consolidated*"], library_name="dml_runner"
        )
    except (OSError, ValueError) as error:
        raise _not_given(name, error) from None
    return _checked(Path(folder))
