"""Data parallelism: every device holds the model, gradients are summed by all-reduce."""

from __future__ import annotations

from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout
from dml_runner.run import Run
from dml_runner.schema.strategy import AllReduce
from dml_runner.strategies.base import data_parallel


def layout(run: Run, words: AllReduce, data: DataFacts, profile: Profile) -> Layout:
    """Every device on the data axis."""
    return data_parallel(run, data, profile, profile.devices, synchronisation="all_reduce", bucket_mb=words.bucket_mb)
