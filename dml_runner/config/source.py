"""How Hydra gets to the files: through our reader, which checks each before Hydra sees it. Imports Hydra at once.

Hydra's loader is used directly, not its compose(): a program that uses Hydra itself (a notebook) keeps its own
global state, and options are looked up in conf/ folders only, never in whatever lies beside a job file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dml_runner import plugins
from dml_runner.config import starts, yaml_file
from dml_runner.config.folders import conf_folders
from dml_runner.errors import ConfigError, Problem, raise_all

JOB = "_job_"
"""The name under which Hydra knows the job file."""

_HYDRA_WORD = re.compile(r"(^|[\s/@.:])hydra($|[/@.:])")


class CheckedFolder(FileConfigSource):
    """A conf/ folder whose files are read by ``yaml_file``; a file that configures Hydra itself is refused."""

    @staticmethod
    def scheme() -> str:
        """The prefix by which Hydra finds this class."""
        return "dmlfolder"

    def load_config(self, config_path: str) -> ConfigResult:
        """One option's content and its ``# @package`` header."""
        path = Path(self.path) / self._normalize_file_name(config_path)
        return _result(self, yaml_file.read(path))


class CheckedJob(ConfigSource):
    """A source that holds one config, named ``JOB``: the job file."""

    @staticmethod
    def scheme() -> str:
        """The prefix by which Hydra finds this class."""
        return "dmljob"

    def load_config(self, config_path: str) -> ConfigResult:
        """The job file's content."""
        return _result(self, yaml_file.read(Path(self.path)))

    def is_group(self, config_path: str) -> bool:
        """A job file holds no groups."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Whether this is the job file's name."""
        return config_path in (JOB, f"{JOB}.yaml")

    def available(self) -> bool:
        """Whether the file is there."""
        return Path(self.path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """A job file is nobody's option."""
        return []


class PluginClasses(ConfigSource):
    """A source of the options that plugins have without a YAML of their own: what their classes of keys start as."""

    @staticmethod
    def scheme() -> str:
        """The prefix by which Hydra finds this class."""
        return "dmlplugin"

    def load_config(self, config_path: str) -> ConfigResult:
        """One option's keys."""
        group, option = self._parts(config_path)
        content = OmegaConf.create(starts.of_class(group, option, plugins.options(group)[option]))
        return ConfigResult(provider=self.provider, path=self.full_path(), config=content, header={"package": None})

    def is_group(self, config_path: str) -> bool:
        """Whether a plugin has an option of this group."""
        return bool(plugins.options(config_path))

    def is_config(self, config_path: str) -> bool:
        """Whether a plugin has this option."""
        group, option = self._parts(config_path)
        return option in plugins.options(group)

    def available(self) -> bool:
        """True: it is always there."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The options of a group."""
        return sorted(plugins.options(config_path))

    @staticmethod
    def _parts(config_path: str) -> tuple[str, str]:
        group, _, option = config_path.removesuffix(".yaml").rpartition("/")
        return group, option


class Loader:
    """Composes a job's tree from its file, the conf/ folders and the groups chosen on the command line."""

    def __init__(self, file: Path | None) -> None:
        for kind in (CheckedFolder, CheckedJob, PluginClasses):
            Plugins.instance().register(kind)
        search = ConfigSearchPathImpl()
        search.append("hydra", "pkg://hydra.conf")
        if file is not None:
            search.append("job", f"dmljob://{file}")
        for folder in conf_folders(file):
            search.append("conf", f"dmlfolder://{folder}")
        search.append("plugins", "dmlplugin://")
        search.append("schema", "structured://")
        self.file = file
        self.primary = JOB if file is not None else "config"
        self.hydra = ConfigLoaderImpl(search)

    def compose(self, choices: Sequence[str]) -> DictConfig:
        """The tree for ``group=option`` words: defaults and interpolations still in it, Hydra's own node removed.

        Raises:
            ConfigError: a file is refused, or Hydra cannot put the files together.
        """
        with self._one_line(), _version():
            config = self.hydra.load_configuration(self.primary, list(choices), RunMode.RUN, from_shell=False)
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        return config

    def defaults(self, choices: Sequence[str]) -> list[tuple[str, str, str]]:
        """The final defaults in the order they are merged: (group, option, file).

        Raises:
            ConfigError: as ``compose``.
        """
        with self._one_line(), _version():
            found = self.hydra.compute_defaults_list(self.primary, list(choices), RunMode.RUN).defaults
        rows = []
        for each in found:
            path = each.config_path or ""
            if not path.startswith("hydra/"):
                group, _, option = path.rpartition("/")
                heir = (each.parent or "").removeprefix(f"{group}/")
                inherited = bool(group) and heir != each.parent and not each.is_self
                rows.append((group, f"{option} (under {heir})" if inherited else option, self._file(path)))
        return rows

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn what Hydra raises into one line, and keep its warnings quiet."""
        problem = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, RecursionError) as error:
            problem = _first_lines(error).replace(f"In '{JOB}': ", "")
        if problem:
            raise ConfigError(Problem(str(self.file) if self.file else "", problem))

    def _file(self, path: str) -> str:
        for source in self.hydra.get_sources():
            if source.is_config(path) and source.scheme() == "dmlplugin":
                module = plugins.module(*path.split("/"))
                return str(module and module.__file__)
            if source.is_config(path):
                return source.path if source.scheme() == "dmljob" else str(Path(source.path) / f"{path}.yaml")
        return ""


def hydra_problems(file: yaml_file.YamlFile) -> Iterator[Problem]:
    """Every place where a file reaches for Hydra's own configuration, which can run code."""
    place, hint = str(file.path), "remove it: such a node can run code"
    for key in file.content:
        if _HYDRA_WORD.search(key):
            yield Problem(place, "configures Hydra itself", got=key, hint=hint)
    package = ConfigSource._get_header_dict(file.text).get("package")
    if package and _HYDRA_WORD.search(package):
        yield Problem(place, "configures Hydra itself", got=f"@package {package}", hint=hint)
    defaults = file.content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        for word in entry if isinstance(entry, dict) else [str(entry)]:
            if _HYDRA_WORD.search(word):
                yield Problem(place, "configures Hydra itself", got=f"defaults: {word}", hint=hint)


def _result(source: ConfigSource, file: yaml_file.YamlFile) -> ConfigResult:
    raise_all(hydra_problems(file))
    try:
        config: Any = OmegaConf.create(file.text)
    except OmegaConfBaseException as error:
        raise ConfigError(Problem(str(file.path), "cannot be interpolated", got=str(error).splitlines()[0])) from None
    header = ConfigSource._get_header_dict(file.text)
    return ConfigResult(provider=source.provider, path=source.full_path(), config=config, header=header)


def _first_lines(error: BaseException) -> str:
    """What Hydra says, without its search path and links."""
    if isinstance(error, RecursionError):
        return "defaults lead back to themselves"
    text = str(error).partition("Config search path")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines and error.__cause__ is not None:
        return _first_lines(error.__cause__)
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__


@contextmanager
def _version() -> Iterator[None]:
    """Hydra's rules of 1.3, without leaving a trace in a program that chose others."""
    before = VersionBase.instance().getbase()
    setbase("1.3")
    try:
        yield
    finally:
        VersionBase.instance().version_base = before
