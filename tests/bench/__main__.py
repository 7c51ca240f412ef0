"""What the gates cost, beside the bare application and beside other packages: `nox -s bench`.

Without options everything is measured, in less than half an hour on two cores. `--quick` is for CI and takes
about a minute: it counts instructions, which a busy machine does not change, and fails when they have grown, or where
a budget is broken by more than twice.
Without valgrind it measures times, and fails where a budget is surely broken by more than twice.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import beside
import blocks
import budgets
import counting
import growth
import guarding
import imports
import report
import servers
import storms
from driver import PEERS, environment, redis_server, worker
from figures import ENOUGH
from subjects import MANY, OURS

SECTIONS = ("imports", "instructions", "beside", "servers", "growth", "storms")


class Run:
    """One run of the benchmark.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.lines: list[str] = []
        self.found: dict[str, Any] = {"machine": report.machine()}
        self.rows: list[beside.Row] = []
        self.instructions: dict[str, guarding.Counted] = {}
        self.broken: list[str] = []
        self._begun = time.monotonic()

    def say(self, line: str = "") -> None:
        """Print a line, and keep it for the report."""
        self.lines.append(line)
        print(line, flush=True)

    def whisper(self, line: str) -> None:
        """Tell of progress."""
        print(f"{time.monotonic() - self._begun:6.0f} s {line}", file=sys.stderr, flush=True)

    def all(self) -> int:
        """Run the chosen sections; give the exit code."""
        self.out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            ours = stack.enter_context(worker(sys.executable))
            self.found["about"] = about = ours.ask("about")
            self._introduce()
            for section in self.options.only:
                self.say(f"\n## {section}\n")
                getattr(self, f"_{section}")()
            self._guard({name: about[name] for name in ("python", "build", "versions")})
        self._conclude()
        (self.out / "bench.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (self.out / "bench.txt").write_text("\n".join(self.lines) + "\n")
        self.whisper(f"written to {self.out}")
        return 1 if self.broken else 0

    def _introduce(self) -> None:
        where, about = self.found["machine"], self.found["about"]
        self.say(f"{where['cpu']}, {where['cores']} cores, {where['system']}, load {where['load'][0]:.2f}")
        self.say(f"Python {about['python']}, " + ", ".join(f"{k} {v}" for k, v in about["versions"].items()))

    def _conclude(self) -> None:
        noisy = [row for row in self.rows if row.cost and row.cost.noisy]
        if noisy:
            spread = max(row.cost.bare.spread / row.cost.bare.value for row in noisy if row.cost)
            self.say(
                f"\nThe machine was noisy: for {len(noisy)} of {len(self.rows)} subjects the bare application itself "
                f"spread by more than a quarter (up to {spread:.0%}) between its quartiles. "
                "Trust the intervals and the instructions."
            )
        for line in self.broken:
            self.say(f"BROKEN: {line}")

    # Sections

    def _imports(self) -> None:
        found = imports.measure(sys.executable, 5 if self.options.quick else 25)
        self.found["imports"] = found
        self.say(
            f"import fastapi_maintenance, after FastAPI and pydantic-settings: {found['ms']:.1f} ms "
            f"({found['low']:.1f} … {found['high']:.1f}; fastest {found['fastest']:.1f}), {found['modules']} modules; "
            f"its models, settings and dataclasses, and as many empty modules: {found['least']:.1f} ms; "
            f"budget {found['budget']:.0f} ms: {found['verdict']}"
        )
        if found["noisy"]:
            self.say("The machine was too noisy to tell: the import of FastAPI itself was not steady.")
        elif not self.options.quick and found["fastest"] > guarding.SLACK * found["budget"]:
            self.broken.append(f"the import takes {found['fastest']:.1f} ms at least")

    def _instructions(self) -> None:
        if not counting.available():
            self.say("valgrind is not installed, so no instructions are counted")
            return
        # Always all: what was asked before decides where objects lie, and so how many instructions their tables take.
        subjects = beside.counted()
        counted = {
            subject: guarding.Counted(bare=round(bare), adds=round(own - bare))
            for subject, (bare, own) in zip(subjects, counting.instructions(sys.executable, subjects), strict=True)
        }
        self.instructions = {guarding.name(subject): cost for subject, cost in counted.items()}
        self.found["instructions"] = self.instructions
        head = ["subject", "bare instructions", "adds", "may add", "ratio"]
        cells: list[list[str]] = []
        for subject, cost in counted.items():
            budget = guarding.allowed(subject, counted)
            may = "" if budget is None else f"{budget:+.0f}"
            ratio = f"×{1 + cost['adds'] / cost['bare']:.3f}"
            cells.append([guarding.name(subject), str(cost["bare"]), f"{cost['adds']:+}", may, ratio])
        self.say(report.text([head, *cells]))
        self.broken += guarding.over_budget(counted)

    def _beside(self) -> None:
        pythons = {OURS: sys.executable}
        with ExitStack() as stack:
            if self.options.quick:
                subjects, turns, rounds = beside.quick(), self.options.turns or 6, 8
            else:
                redis = stack.enter_context(redis_server()) if self.found["about"]["redis"] else None
                if redis is None:
                    self.say("Redis is left out: no backend for it here, or no client, or no server.")
                subjects, turns, rounds = beside.everything(redis), self.options.turns or 12, 12
                for name, python in self._peers():
                    pythons[name] = python
                    with worker(python) as peer:
                        self.found[name] = peer.ask("about")
                    self.say(f"{name}: " + ", ".join(f"{k} {v}" for k, v in self.found[name]["versions"].items()))
            subjects = [subject for subject in subjects if subject.routes in self.options.routes]
            self.rows = beside.measure(pythons, subjects, turns, rounds, self.whisper)
        self.found["beside"] = [row.to_dict() for row in self.rows]
        self.say(
            "In process: CPU time of a request; what it adds is paired with the bare application, round by round. "
            f"Of less than {ENOUGH} turns, as behind {MANY} routes, the brackets hold all that was found.\n"
        )
        slower = beside.slowness({row.subject: row.cost for row in self.rows if row.cost})
        self.say(
            f"A bare request (20 direct routes) takes {budgets.BARE_REQUEST * slower:.1f} µs here. The budgets are of "
            f"a machine on which it takes {budgets.BARE_REQUEST:g} µs, so they are multiplied by {slower:.2f}.\n"
        )
        self.say(report.text(beside.table(self.rows)))
        if beside.shown(self.rows, closed=False) and not self.options.quick:
            self.say("\nFor the README:\n\n" + report.markdown(beside.summary(self.rows)))
            self._draw()
        self.found["blocks"] = parts = blocks.measure()
        self.say("\nThe parts, each by itself: " + ", ".join(f"{name} {us} µs" for name, us in parts.items()) + ".")
        broken = [row for row in self.rows if row.broken(guarding.SLACK)]
        self.broken += [f"{guarding.name(row.subject)}: {row.told}" for row in broken]

    def _draw(self) -> None:
        shown = beside.shown(self.rows, closed=False)
        widths = [(label.replace("`", ""), max(cost.waits.value, 0.1)) for label, cost in shown.items()]
        report.bars(self.out / "speed.svg", "What an open gate adds to a request", "microseconds, logarithmic", widths)

    def _peers(self) -> Iterator[tuple[str, str]]:
        for name, requirements in PEERS.items():
            self.whisper(f"  installing {name}")
            yield name, environment(self.options.envs, name, requirements)

    def _servers(self) -> None:
        pythons = {OURS: sys.executable, **dict(self._peers())}
        found = servers.measure(pythons, servers.subjects(), turns=3, seconds=self.options.seconds)
        self.found["servers"] = found
        self.say(
            f"uvicorn, one process, {servers.CONNECTIONS} keep-alive connections that ask again as soon as they are "
            f"answered, {self.options.seconds:g} s a turn, in turn.\n"
        )
        self.say(report.text(servers.table(found)))

    def _growth(self) -> None:
        grown: list[growth.Grown] = []
        with ExitStack() as stack:
            turns = [stack.enter_context(worker(sys.executable, hashes=turn)) for turn in range(growth.TURNS)]
            for axis in growth.AXES:
                grown.append(growth.grow(turns, axis, self.whisper))
                self._show(grown[-1])
            grown.append(growth.crowd(turns[0], self.whisper))
            self._show(grown[-1])
        for each in growth.workers(sys.executable, self.options.seconds, self.whisper):
            grown.append(each)
            self._show(each)
        self.found["growth"] = growth.to_dict(grown)

    def _show(self, grown: growth.Grown) -> None:
        self.say(report.text(grown.table()) + "\n")
        grown.draw(self.out)

    def _storms(self) -> None:
        for name, storm in (
            ("10,000 clients ask at once", lambda: storms.rush(sys.executable, 3)),
            ("closing and opening every 100 ms", lambda: storms.flicker(sys.executable, self.options.storm)),
        ):
            found = storm()
            self.found[name] = found
            self.say(f"{name}: {found['verdict']}")
            self.say(json.dumps(found, indent=1))

    def _guard(self, about: dict[str, Any]) -> None:
        if not self.options.save_baseline:
            self.broken += guarding.compare(about, self.instructions)
        elif self.instructions:
            guarding.write(about, self.instructions)
        else:
            self.broken.append("no instructions were counted, so the baseline stays as it was")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what CI looks at, in about a minute")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections alone")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="where tables and pictures go")
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir()) / "bench-environments")
    parser.add_argument("--turns", type=_positive, help="how often each is measured, in process; more tell more surely")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a server is loaded each turn")
    parser.add_argument("--storm", type=float, default=60.0, help="how many seconds it closes and opens")
    parser.add_argument("--routes", type=int, nargs="+", default=[20, 1000], help="how many routes, in process")
    parser.add_argument("--save-baseline", action="store_true", help="keep the instructions in baseline.json")
    options = parser.parse_args()
    # Instructions are the same on a busy machine as on a quiet one.
    quick = ("imports", "instructions" if counting.available() else "beside")
    options.only = options.only or (quick if options.quick else SECTIONS)
    return Run(options).all()


if __name__ == "__main__":
    sys.exit(main())
