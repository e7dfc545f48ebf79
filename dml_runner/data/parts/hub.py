"""Tables of the datasets library: from the hub, from files, or from a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dml_runner.data.parts.files import find_names
from dml_runner.data.parts.rows import raise_missing
from dml_runner.errors import ConfigError, Problem, did_you_mean
from dml_runner.files import digest, digest_text
from dml_runner.schema.data import HuggingfaceData

KEY = "data.path"
READERS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv"}
BATCH = 1000
"""Rows that the library hands over at once."""
PATIENCE_S = 10.0
"""For the hub's first answer; the library itself would try for 23 s where there is no network, and print each try."""


@dataclass(frozen=True)
class Table:
    """One split of a data set.

    Attributes:
        name: what the user calls it.
        columns: the names of its columns.
        digest: SHA-256 that tells its content from any other.
    """

    name: str
    columns: tuple[str, ...]
    digest: str
    _data: Any

    def require(self, *wanted: tuple[str, str]) -> None:
        """Refuse keys that name a column the table lacks; ``wanted`` are keys with the columns they name.

        Raises:
            ConfigError: one is missing; the message lists those that are there.
        """
        raise_missing(wanted, self.name, self.columns)

    def rows(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """The cells of ``columns``, row by row; a class as its number, an image as its file: ``bytes``, or else a ``path``.

        Raises:
            ConfigError: the library cannot read it.
        """
        from datasets import ClassLabel, Image

        with _told(self.name):
            data = self._data.select_columns(list(columns))
            features = data.features or {}
            for column in columns:
                if isinstance(features.get(column), Image):
                    data = data.cast_column(column, Image(decode=False))
            unnamed = [isinstance(features.get(column), ClassLabel) for column in columns]
            for batch in data.iter(BATCH):
                for row in zip(*(batch[column] for column in columns), strict=True):
                    # a class of -1 is the library's word for none
                    yield tuple(None if no and cell == -1 else cell for no, cell in zip(unnamed, row, strict=True))


@dataclass(frozen=True)
class _Splits:
    """The splits of a data set: their names, and how each is opened and told from others."""

    names: Sequence[str]
    open: Callable[[str], Any]
    digest: Callable[[str], str]


def open_tables(words: HuggingfaceData, cache: Path) -> tuple[Table, Table | None]:
    """The tables to train on and held out; None: none is named.

    Args:
        words: which data set, and which of its splits.
        cache: folder for what the library notes down of files; what it downloads goes where it always does.

    Raises:
        ConfigError: the library is missing, or there is no such data set or split.
    """
    try:
        import datasets  # noqa: F401
    except ImportError:
        problem = Problem("data.name", "needs the datasets library", got="huggingface", hint="pip install 'dml_runner[huggingface]'")
        raise ConfigError(problem) from None
    splits = _find(words, cache)
    wanted = [("data.split", words.split), *([("data.eval_split", words.eval_split)] if words.eval_split else [])]
    there = ", ".join(splits.names)
    problems = [
        Problem(key, f"{words.path} has no such split", name, there, did_you_mean(name, splits.names))
        for key, name in wanted
        if name not in splits.names
    ]
    if problems:
        raise ConfigError(*problems)
    train, *held_out = [_table(words.path, name, splits) for _, name in wanted]
    return train, held_out[0] if held_out else None


def _table(path: str, split: str, splits: _Splits) -> Table:
    name = f"{path}[{split}]"
    with _told(name):
        data = splits.open(split)
        columns = data.column_names or list(next(iter(data), {}))
        if not columns:
            raise ConfigError(Problem(KEY, "the table has no rows", got=name))
        return Table(name, tuple(columns), splits.digest(split), data)


def _find(words: HuggingfaceData, cache: Path) -> _Splits:
    path = os.path.expanduser(words.path)
    if Path(path).is_dir():
        saved = any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
        return _saved(words) if saved else _folder(words, cache)
    if Path(path).is_file() or Path(path).is_absolute() or Path(path).suffix in READERS or glob.has_magic(path):
        return _files(words, cache)
    return _from_hub(words)


def _saved(words: HuggingfaceData) -> _Splits:
    from datasets import DatasetDict, load_from_disk

    _refuse_subset(words)
    folder = Path(words.path).expanduser()
    with _told(words.path):
        data = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        return _Splits(list(data), data.__getitem__, lambda split: _digest_files(sorted((folder / split).iterdir())))
    return _Splits([str(data.split or "train")], lambda _: data, lambda _: _digest_files(sorted(folder.iterdir())))


def _files(words: HuggingfaceData, cache: Path) -> _Splits:
    from datasets import load_dataset_builder

    _refuse_subset(words)
    names, problems = find_names(KEY, words.path)
    kinds = {Path(name).suffix for name in names}
    if not problems and (len(kinds) > 1 or not kinds <= READERS.keys()):
        problems = [Problem(KEY, "files of one known kind are needed", ", ".join(sorted(kinds)), ", ".join(READERS))]
    if problems:
        raise ConfigError(*problems)
    reader = READERS[kinds.pop()]
    # without keep_default_na the words NA, null and None of a .csv file would be no words
    special = {"keep_default_na": False} if reader == "csv" else {}
    with _told(words.path):
        found = {"train": [str(Path(name).absolute()) for name in names]}
        builder = load_dataset_builder(reader, data_files=found, cache_dir=str(cache.absolute() / "huggingface"), **special)
    return _Splits(["train"], lambda split: builder.as_streaming_dataset(split), lambda _: _digest_files([Path(n) for n in names]))


def _folder(words: HuggingfaceData, cache: Path) -> _Splits:
    """Files in a folder, whose names tell the splits."""
    from datasets import load_dataset_builder

    with _told(words.path, words.subset):
        folder = str(Path(words.path).expanduser())
        builder = load_dataset_builder(folder, words.subset, cache_dir=str(cache.absolute() / "huggingface"))
        files = {str(split): [Path(name) for name in names] for split, names in (builder.config.data_files or {}).items()}
    return _Splits(list(files), lambda split: builder.as_streaming_dataset(split), lambda split: _digest_files(files[split]))


def _from_hub(words: HuggingfaceData) -> _Splits:
    from datasets import load_dataset_builder

    _ask_hub(words.path)
    with _told(words.path, words.subset):
        builder = load_dataset_builder(words.path, words.subset)
        names = [str(name) for name in builder.info.splits or builder.config.data_files or ()]
    about = [words.path, builder.config_id, str(builder.config.version), builder.hash]

    def opened(split: str) -> Any:
        if words.streaming:
            return builder.as_streaming_dataset(split)
        builder.download_and_prepare()
        return builder.as_dataset(split)

    return _Splits(names, opened, lambda split: digest_text(json.dumps([*about, split])))


def _ask_hub(name: str) -> None:
    """Whether the hub has a data set of this name, in seconds; where it is not to be asked, what was fetched before may be there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().dataset_info(name, timeout=PATIENCE_S)
    except OfflineModeIsEnabled:
        return
    except Exception as error:  # its client's errors belong to a library that changes with its version
        what = f"no file or folder of this name, and the hub did not give it ({type(error).__name__})"
        hint = "HF_HUB_OFFLINE=1 takes what was fetched before"
        raise ConfigError(Problem(KEY, what, got=name, hint=hint)) from None


def _refuse_subset(words: HuggingfaceData) -> None:
    if words.subset is not None:
        raise ConfigError(Problem("data.subset", "files have no subsets", got=words.subset, allowed="null"))


def _digest_files(files: Sequence[Path]) -> str:
    found = [digest(file) for file in files if file.is_file()]
    return found[0] if len(found) == 1 else digest_text("\n".join(found))


@contextlib.contextmanager
def _told(name: str, subset: str | None = None) -> Iterator[None]:
    """Whatever the library raises, as one line."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it would print what the error says again
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # its readers raise what their own libraries do
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        key = "data.subset" if subset is not None and "BuilderConfig" in lines[0] else KEY
        raise ConfigError(Problem(key, "the datasets library cannot read it", got=f"{name} ({lines[0]})")) from None
    finally:
        logger.setLevel(level)
