"""The house holds: rooms in order, small files, every public name explained, nothing that runs code from a file."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dml_runner"
FILES = sorted(PACKAGE.rglob("*.py"))

# The order of the rooms stands in CONTRIBUTING.md, where it is explained: "    room/   what it is" or "    room.py   what it is".
LISTED = re.findall(r"^    ([a-z_]+)(?:/|\.py) {2,}\S", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
ROOMS = [*LISTED, "__init__", "__main__"]
SIBLINGS = ("strategies", "models", "data", "optim")
LIGHT = (
    "errors",
    "files",
    "schema",
    "run",
    "validation",
    "plugins",
    "layout",
    "schedules",
    "facts",
    "tensor_rules",
    "strategies",
    "config",
    "cli",
)
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


# --- reading the source -------------------------------------------------------------------------------------------------


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(), str(path))


def module_of(path: Path) -> str:
    """Dotted name of a file: ``dml_runner.schema.base``; a package's ``__init__`` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The room a module stands in; the package's own ``__init__`` is a room too."""
    return [*module.split("."), "__init__"][1]


def where(path: Path, node: Any) -> str:
    """``dml_runner/x.py:12``."""
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of our own modules, wherever it stands in the file. The version number is anyone's to read."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names if alias.name.split(".")[0] == "dml_runner")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)}: relative import; write the whole name"
            module = node.module or ""
            for alias in node.names if module.split(".")[0] == "dml_runner" else ():
                inner = f"{module}.{alias.name}"
                if inner != "dml_runner.__version__":
                    yield node, inner if inner in MODULES else module


def dispatches(path: Path) -> Iterator[tuple[ast.expr, str]]:
    """Every ``import_module(f"dml_runner.room.{name}")``."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            target = ast.unparse(node.args[0]).strip("f'\"")
            if target.startswith("dml_runner."):
                yield node, target.split("{")[0].rstrip(".")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, nested ones too."""
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a body, and what is public in those classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


# --- rooms ---------------------------------------------------------------------------------------------------------------


def test_contributing_lists_every_room_once() -> None:
    standing = {room_of(module) for module in MODULES}
    assert len(ROOMS) == len(set(ROOMS))
    assert not standing - set(ROOMS), "not in the list of CONTRIBUTING.md"
    assert not set(ROOMS) - standing, "in the list of CONTRIBUTING.md only"


def test_imports_point_to_earlier_rooms_only() -> None:
    wrong = []
    for module, path in MODULES.items():
        here = room_of(module)
        for node, target in (*imports(path), *dispatches(path)):
            there = room_of(target)
            if ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{where(path, node)}: {here} imports {target}, but {there} stands after it")
    assert not wrong, "\n".join(wrong)


def test_options_do_not_know_each_other() -> None:
    wrong = []
    for module, path in MODULES.items():
        room = room_of(module)
        for node, target in imports(path) if room in SIBLINGS else ():
            inside = target.split(".")[2:]
            if room_of(target) == room and inside[:1] not in (["base"], ["parts"]):
                wrong.append(f"{where(path, node)}: imports {target}; files of {room} share base and parts only")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycle() -> None:
    graph = {module: {target for _, target in imports(path)} for module, path in MODULES.items() if module != "dml_runner"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_light_rooms_do_not_import_torch() -> None:
    modules = [module for module in MODULES if room_of(module) in LIGHT]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'importing {name} imports torch')\n"
    )
    found = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("module", [name for name in ("dml_runner", "dml_runner.cli") if name in MODULES])
def test_the_front_door_opens_at_once(module: str) -> None:
    script = f"import sys, {module}; print([name for name in ('torch', 'hydra', 'pydantic') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


# --- size and words ------------------------------------------------------------------------------------------------------


def test_files_and_functions_stay_small() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (*FILES, *sorted((ROOT / "tests").glob("*.py")))}
    wrong = [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > LONGEST_FILE]
    for path in FILES:
        for node in functions(path):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                wrong.append(f"{where(path, node)}: {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_every_public_name_has_a_docstring() -> None:
    wrong = [f"{path.relative_to(ROOT)}: no docstring" for path in FILES if tree(path).body and not ast.get_docstring(tree(path))]
    wrong += [f"{where(path, node)}: {node.name}" for path in FILES for node in public(tree(path).body) if not ast.get_docstring(node)]
    assert not wrong, "\n".join(wrong)


FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
FORBIDDEN_METHODS = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list", "send_object_list"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}


def code_runners(node: ast.AST) -> set[str]:
    """What a node uses that evaluates text or unpickles bytes."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]} & FORBIDDEN_MODULES
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        pickled = {word.arg for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"}
        return {called} & FORBIDDEN_CALLS | {called.split(".")[-1]} & FORBIDDEN_METHODS | {name for name in pickled if name}
    return set()


def test_nothing_read_from_a_file_can_run_code() -> None:
    wrong = [f"{where(path, node)}: {name}" for path in FILES for node in ast.walk(tree(path)) for name in code_runners(node)]
    wrong += [f"{path.relative_to(ROOT)}: _target_" for path in FILES if "_target_" in path.read_text()]
    assert not wrong, "\n".join(wrong)
