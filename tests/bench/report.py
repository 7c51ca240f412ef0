"""Tables as text, and pictures where matplotlib is installed."""

import importlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Tell where it ran."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return {
        "system": platform.platform(),
        "cpu": model,
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
    }


def text(rows: Sequence[Sequence[str]]) -> str:
    """Give rows, the first of which is the head, as columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in cells).rstrip()
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Give rows, the first of which is the head, as a table of Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    head, *lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines])


def plot(path: Path, title: str, x: str, y: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    """Draw lines over a logarithmic axis; `False` where matplotlib is not installed."""
    pyplot = _pyplot()
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for label, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set(title=title, xlabel=x, ylabel=y, xscale="symlog")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)
    return True


def bars(path: Path, title: str, x: str, values: Iterable[tuple[str, float]]) -> bool:
    """Draw bars over a logarithmic axis; `False` where matplotlib is not installed."""
    pyplot = _pyplot()
    if pyplot is None:
        return False
    labels, widths = zip(*values, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 0.36 * len(labels) + 1), layout="constrained")
    drawn = axes.barh(
        labels, widths, color=["#888" if "fastapi-" in n or "waygate" in n else "#009485" for n in labels]
    )
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=x, xscale="log")
    axes.margins(x=0.15)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _pyplot() -> Any:
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("svg")
        # Letters stay letters: a small picture, the same from run to run.
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.family": "sans-serif"})
    except ImportError:
        return None
    return importlib.import_module("matplotlib.pyplot")
