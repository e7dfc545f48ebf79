"""Bytes and seconds as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """``8.40 MB``: three digits of a number of bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{int(count)} B" if unit == "B" else f"{_digits(count)} {unit}"
        count /= 1000
    return f"{_digits(count)} GB"


def duration(seconds: float) -> str:
    """``12.3 ms``: three digits of a time."""
    if seconds < 0.9995e-3:
        return f"{_digits(seconds * 1e6)} us"
    return f"{_digits(seconds * 1e3)} ms" if seconds < 0.9995 else f"{_digits(seconds)} s"


def _digits(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".")
