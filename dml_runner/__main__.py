"""``python -m dml_runner`` is ``dml``."""

from __future__ import annotations

from dml_runner.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
