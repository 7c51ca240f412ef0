"""The operators' command: `fastapi-maintenance`, or `python -m fastapi_maintenance`."""

import importlib.util
import os
import sys


def main() -> None:
    """Run the command; where typer is not installed, say how to get it."""
    _fill_standard_streams()
    if importlib.util.find_spec("typer") is None:
        sys.exit('fastapi-maintenance needs typer: pip install "fastapi-maintenance[cli]"')
    from fastapi_maintenance.cli import app  # noqa: PLC0415 - it needs typer

    app(prog_name="fastapi-maintenance")


def _fill_standard_streams() -> None:
    """Open what was closed at the start, as by `2>&-`: it can be written to, and no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - it stays open


if __name__ == "__main__":
    main()
