"""From a user's words to files: a file, a glob, or a list of them."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence

from dml_runner.data.parts.source import FileSource, Source
from dml_runner.errors import Problem


def find_files(key: str, words: str | Sequence[str]) -> tuple[list[Source], list[Problem]]:
    """The texts that ``words`` name, and what is wrong with the words; see ``find_names``.

    Args:
        key: the key the words stand under.
        words: a path, a glob, or several.
    """
    names, problems = find_names(key, words)
    return [FileSource(name, key) for name in names], problems


def find_names(key: str, words: str | Sequence[str]) -> tuple[list[str], list[Problem]]:
    """The files that ``words`` name, in the order given, a glob's files by name; and what is wrong with the words.

    Args:
        key: the key the words stand under.
        words: a path relative to the current folder, a glob (``**`` crosses folders), or several.
    """
    found: list[str] = []
    problems: list[Problem] = []
    for word in (words,) if isinstance(words, str) else words:
        names, problem = _expand(key, os.path.expanduser(word))
        found += names
        problems += [problem] if problem else []
    if not found and not problems:
        problems.append(Problem(key, "no file given", got="an empty list"))
    return found, problems


def _expand(key: str, word: str) -> tuple[list[str], Problem | None]:
    try:
        mode = os.stat(word).st_mode
    except FileNotFoundError:
        return _match(key, word)
    except (OSError, ValueError) as error:
        return [], Problem(key, "cannot read the file", got=f"{word!r} ({getattr(error, 'strerror', None) or error})")
    if stat.S_ISDIR(mode):
        return [], Problem(key, "a folder, not a file", got=word, hint=f"for all files in it: {os.path.join(word, '*.txt')}")
    if not stat.S_ISREG(mode):
        return [], Problem(key, "not a plain file", got=word, allowed="text files")
    return [word], None


def _match(key: str, word: str) -> tuple[list[str], Problem | None]:
    if not glob.has_magic(word):
        return [], Problem(key, "no such file", got=word, hint=f"the current folder is {os.getcwd()}")
    names = sorted(name for name in glob.iglob(word, recursive=True) if os.path.isfile(name))
    if not names:
        return [], Problem(key, "the glob matches no file", got=word, hint=f"the current folder is {os.getcwd()}")
    return names, None
