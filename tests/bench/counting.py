"""Instructions instead of time: the same on a busy machine as on a quiet one. Needs valgrind."""

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from driver import worker
from subjects import Subject

REQUESTS = 50
_TOTAL = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


def available() -> bool:
    """Tell whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def instructions(python: str, subjects: list[Subject]) -> list[tuple[float, float]]:
    """Give instructions of a request to each subject's bare application, and to the subject; 0 where it is wrong.

    The worker runs them within `dir()`: callgrind counts inside of that function alone, and writes a file after each.
    """
    with TemporaryDirectory() as folder:
        options = ["--toggle-collect=PyObject_Dir", "--dump-after=PyObject_Dir", f"--callgrind-out-file={folder}/out"]
        command = ["valgrind", "--tool=callgrind", "--log-file=/dev/null", *options]
        with worker(python, *command) as counting:
            counting.ask("instructions", subjects=subjects, requests=REQUESTS)
        files = sorted(Path(folder).glob("out.*"), key=lambda file: int(file.suffix[1:]))
        # The imports called `dir()`, too.
        totals = [_total(file) / REQUESTS for file in files[-2 * len(subjects) :]]
    return list(zip(totals[::2], totals[1::2], strict=True))


def _total(file: Path) -> int:
    found = _TOTAL.search(file.read_text())
    return int(found[1]) if found else 0
