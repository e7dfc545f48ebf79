"""What every section of a job shares: strict types, no unknown key, ranges, and a line of meaning under each field.

Defaults do not stand here: they stand in conf/, where the vocabulary is read.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""0 <= value < 1."""
Share = Annotated[float, Field(ge=0, le=1)]
"""0 <= value <= 1."""
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen group of keys; an unknown key, a wrong type, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


@cache
def meanings(section: type[Section]) -> dict[str, str]:
    """Field name -> the docstring under the field, inherited fields included."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if issubclass(owner, Section) and owner is not Section:
            found.update(_docstrings(owner))
    return found


def _docstrings(section: type[Section]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
