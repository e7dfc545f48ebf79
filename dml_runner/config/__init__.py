"""Words to Run: Hydra composes here, once, in the launching process. Hydra itself is imported when it is needed."""

from __future__ import annotations

from dml_runner.config.compose import Composed, compose, recompose, show_defaults, show_job
from dml_runner.config.folders import conf_folder, groups
from dml_runner.config.help import group_help, verb_help
from dml_runner.config.sweep import trials
from dml_runner.config.words import load_plugins

__all__ = [
    "Composed",
    "compose",
    "conf_folder",
    "group_help",
    "groups",
    "load_plugins",
    "recompose",
    "show_defaults",
    "show_job",
    "trials",
    "verb_help",
]
