"""Reading a YAML file that a user wrote: small, plain, without surprises, refused with file, line and column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dml_runner.errors import ConfigError, Problem, raise_all

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 32

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")}
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_UNDERSCORE = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class YamlFile:
    """A file that passed every check: its text, and its content with scalars as they are written."""

    path: Path
    text: str
    content: dict[str, Any]


def read(path: Path) -> YamlFile:
    """Read and check one file.

    Refused are: more than 1 MB or 20,000 values (aliases counted as often as they are used), nesting beyond 32,
    bad syntax, duplicate keys, tags, anything but a mapping at the root, and scalars that YAML reads as something
    else than they look like (``010``, ``12:30:45``, ``1_000``, ``yes``, ``.nan``).

    Raises:
        ConfigError: every trap at once, or the first thing that makes the file unreadable.
    """
    text = _text(path)
    _count_events(path, text)
    root = _parse(path, text)
    if not isinstance(root, yaml.MappingNode):
        got = "an empty file" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else f"text {_short(root.value)}"
        raise ConfigError(Problem(str(path), "config must be a mapping", got=got, allowed="lines of key: value"))
    _size(path, root, {}, 0)
    raise_all(_traps(path, root, ""))
    return YamlFile(path, text, _plain(root))


def _text(path: Path) -> str:
    shown = str(path)
    if path.is_dir():
        raise ConfigError(Problem(shown, "is a folder", allowed="a YAML file"))
    if not path.exists():
        raise ConfigError(Problem(shown, "no such file"))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(Problem(shown, f"cannot be read: {error.strerror}")) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(Problem(shown, "too large", got=f"more than {MAX_BYTES:,} bytes", allowed=f"{MAX_BYTES:,} bytes"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem(f"{shown}:{line}", "not UTF-8", got=f"byte 0x{data[error.start]:02x}")) from None


def _count_events(path: Path, text: str) -> None:
    depth = events = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            events += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                raise _too_deep(path, event)
            if events > 2 * MAX_NODES:
                raise _too_many(path)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(path, text, error)) from None


def _parse(path: Path, text: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(path, text, error)) from None
    return node


def _syntax(path: Path, text: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML")
    if mark is None:
        return Problem(str(path), what)
    lines = text.splitlines() or [""]
    number = min(mark.line, len(lines) - 1)
    while number > 0 and not lines[number].strip():
        number -= 1
    column = mark.column if number == mark.line else len(lines[number])
    if "another document" in what:
        what = "a second document begins; a file holds one"
    elif "expected ',' or" in what:
        what = f"a list or mapping is not closed ({what})"
    elif "\t" in lines[number][: column + 1]:
        what = f"a tab where YAML wants spaces ({what})"
    return Problem(f"{path}:{number + 1}:{column + 1}", what, got=_short(lines[number]))


def _size(path: Path, node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values ``node`` stands for once every alias is written out."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ConfigError(Problem(_place(path, node), "an alias stands inside what it names"))
        return known[id(node)]
    if node.tag not in _TAGS:
        tag, allowed = node.tag.replace("tag:yaml.org,2002:", "!!"), "text, numbers, true, false, null, lists and mappings"
        raise ConfigError(Problem(_place(path, node), "tags are not allowed", got=tag, allowed=allowed))
    if depth > MAX_DEPTH:
        raise _too_deep(path, node)
    known[id(node)] = 0
    total = 1 + sum(_size(path, child, known, depth + 1) for child in _children(node))
    if total > MAX_NODES:
        raise _too_many(path)
    known[id(node)] = total
    return total


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _traps(path: Path, node: yaml.Node, dotted: str) -> Iterator[Problem]:
    if isinstance(node, yaml.ScalarNode):
        yield from _scalar_trap(path, node, dotted)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _traps(path, item, f"{dotted}[{index}]")
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                got = _short(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                yield Problem(_place(path, key), "a key must be text", got=got, hint="quote it")
                continue
            inner = f"{dotted}.{key.value}" if dotted else key.value
            if key.value in seen and key.tag.endswith(":str"):
                first = seen[key.value].start_mark.line + 1
                yield Problem(_place(path, key), "duplicate key", got=inner, hint=f"it stands in line {first} already")
            seen[key.value] = key
            yield from _traps(path, value, inner)


def _scalar_trap(path: Path, node: yaml.ScalarNode, dotted: str) -> Iterator[Problem]:
    text, kind = node.value, node.tag.rpartition(":")[2]
    place = _place(path, node)
    if kind == "bool" and text.lower() not in ("true", "false"):
        value = "true" if text.lower() in ("yes", "on") else "false"
        yield _trap(place, dotted, text, value, f"write {value}")
    elif not node.style and _NOT_FINITE.fullmatch(text):
        yield Problem(dotted, "not a finite number", got=text, hint=f"see {place}")
    elif kind == "int" and _OCTAL.fullmatch(text):
        value = str(int(text.replace("_", ""), 8))
        yield _trap(place, dotted, text, value, f"write {text.replace('_', '').lstrip('0') or '0'} or {value}")
    elif kind in ("int", "float") and ":" in text:
        value = str(yaml.safe_load(text))
        yield _trap(place, dotted, text, value, f"write {value}")
    elif not node.style and "_" in text and _UNDERSCORE.fullmatch(text):
        value = text.replace("_", "")
        yield _trap(place, dotted, text, value, f"write {value}")


def _trap(place: str, dotted: str, text: str, value: str, plainly: str) -> Problem:
    return Problem(dotted, f"YAML reads {text} as {value}", got=text, hint=f'{plainly}, or "{text}" if text is meant (see {place})')


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return node.value


def _place(path: Path, node: Any) -> str:
    return f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _short(text: object) -> str:
    whole = str(text)
    return repr(whole if len(whole) <= 80 else whole[:77] + "...")


def _too_deep(path: Path, node: Any) -> ConfigError:
    return ConfigError(Problem(_place(path, node), "nested too deep", allowed=f"{MAX_DEPTH} levels"))


def _too_many(path: Path) -> ConfigError:
    return ConfigError(Problem(str(path), "too many values", got=f"more than {MAX_NODES:,}, aliases written out", allowed=f"{MAX_NODES:,}"))
