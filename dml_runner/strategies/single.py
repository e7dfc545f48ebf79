"""One device trains the whole model, whatever the machine has."""

from __future__ import annotations

from dml_runner.facts import DataFacts
from dml_runner.hardware.profile import Profile
from dml_runner.layout import Layout
from dml_runner.run import Run
from dml_runner.schema.strategy import Single
from dml_runner.strategies.base import data_parallel


def layout(run: Run, words: Single, data: DataFacts, profile: Profile) -> Layout:
    """One rank, nothing to synchronise."""
    return data_parallel(run, data, profile, ranks=1, synchronisation="none", bucket_mb=0.0)
