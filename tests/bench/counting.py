"""Instructions instead of time: the same on a busy machine as on a quiet one. Needs valgrind."""

import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from driver import worker
from subjects import Subject

REQUESTS = 30
_TOTAL = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


def available() -> bool:
    """Tell whether valgrind is installed."""
    return all(map(shutil.which, ("valgrind", "callgrind_control")))


def instructions(python: str, subjects: list[Subject]) -> list[tuple[float, float]]:
    """Give instructions of a request to each subject's bare application, and to the subject.

    The worker runs them within `dir()`: callgrind counts inside of that function alone, and writes a file after each.
    It is switched on once the applications are built, for what it watches runs ten times slower.

    Raises:
        RuntimeError: A subject answers wrongly, or nothing was counted.
    """
    with TemporaryDirectory() as folder:
        options = ["--toggle-collect=PyObject_Dir", "--dump-after=PyObject_Dir", f"--callgrind-out-file={folder}/out"]
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--log-file=/dev/null", *options]
        with worker(python, *command) as counting:
            faults = counting.ask("prepare", subjects=subjects)
            if any(faults):
                raise RuntimeError(f"{[s.label for s, fault in zip(subjects, faults, strict=True) if fault]}: {faults}")
            switch = ["callgrind_control", "--instr=on", str(counting.pid)]
            subprocess.run(switch, check=True, capture_output=True, timeout=60)
            counting.ask("instructions", subjects=subjects, requests=REQUESTS)
        files = sorted(Path(folder).glob("out.*"), key=lambda file: int(file.suffix[1:]))
        totals = [_total(file) / REQUESTS for file in files[-2 * len(subjects) :]]
    return list(zip(totals[::2], totals[1::2], strict=True))


def _total(file: Path) -> int:
    found = _TOTAL.search(file.read_text())
    if found is None:
        raise RuntimeError(f"callgrind counted nothing: {file}")
    return int(found[1])
