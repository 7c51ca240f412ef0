"""From many rounds to a figure, and how sure it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median, quantiles

TOO_NOISY = 0.25
"""Where a bare request spreads more than this between its quartiles, the machine was too busy to be precise."""


UNSURE = 0.05
"""The part of all intervals that may miss the true median."""
ENOUGH = 6
"""Values without which no interval is that sure: of five, all lie on one side of the median in one of sixteen cases."""


@dataclass(frozen=True)
class Figure:
    """A median with what it may as well be.

    Attributes:
        value: The median.
        low: The lower end of its 95 % confidence interval.
        high: The upper end.
        spread: From the first quartile to the third.
        enough: Whether there were enough values for such an interval; else it is from the least to the greatest.
    """

    value: float
    low: float
    high: float
    spread: float
    enough: bool

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure":
        """Compute it; the interval is that of order statistics, which asks nothing of the distribution."""
        ordered = sorted(values)
        count = len(ordered)
        # As many are left out at each end as leave out the true median in one of twenty cases: tosses of a coin.
        beyond, edge = 1, 0
        while 2 * (beyond + comb(count, edge + 1)) <= UNSURE * 2**count:
            edge += 1
            beyond += comb(count, edge)
        quarter = quantiles(ordered, n=4) if count > 1 else [ordered[0]] * 3
        return cls(median(ordered), ordered[edge], ordered[count - 1 - edge], quarter[2] - quarter[0], count >= ENOUGH)

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} … {self.high:.2f})"


Turn = Sequence[Sequence[float]]
"""Rounds in one process: the microseconds of a request, bare and of the subject on the wall, then both on the CPU."""


def quiet_of(turns: Iterable[Turn]) -> float:
    """Give the CPU time of a bare request while the machine was quiet: the tenth part of the rounds was faster."""
    return percentile(sorted(bare for turn in turns for _, _, bare, _ in turn), 0.1)


@dataclass(frozen=True)
class Cost:
    """What a subject costs beside its bare application, in microseconds a request.

    A busy machine runs slower for a while, and everything on it by the same factor: so it is the ratio that is taken
    round by round, and the microseconds are that ratio of the bare application while the machine was quiet.

    Attributes:
        quiet: The bare application while the machine was quiet.
        bare: The bare application on the wall.
        own: The subject on the wall.
        ratio: The subject over the bare one, by the CPU time of the process.
        adds: What that makes of a quiet bare request.
        waits: The same by the clock on the wall: threads and sleep count as well.
    """

    quiet: float
    bare: Figure
    own: Figure
    ratio: Figure
    adds: Figure
    waits: Figure

    @classmethod
    def of(cls, turns: Sequence[Turn], quiet: float) -> "Cost":
        """Compute it.

        Each turn is a process, and where things lie in its memory makes one faster than another: so it is the turns
        that an interval is of, and its rounds together make the figure of a turn.

        Args:
            turns: What was measured.
            quiet: What `quiet_of` gives for all that has the same bare application.
        """
        ratios = [median(own / bare for _, _, bare, own in turn) for turn in turns]
        waited = [median(own / bare for bare, own, _, _ in turn) for turn in turns]
        return cls(
            quiet=quiet,
            bare=Figure.of(bare for turn in turns for bare, _, _, _ in turn),
            own=Figure.of(own for turn in turns for _, own, _, _ in turn),
            ratio=Figure.of(ratios),
            adds=Figure.of((ratio - 1) * quiet for ratio in ratios),
            waits=Figure.of((ratio - 1) * quiet for ratio in waited),
        )

    @property
    def waited(self) -> float:
        """The subject over the bare one by the clock on the wall, while the machine was quiet."""
        return 1 + self.waits.value / self.quiet

    @property
    def noisy(self) -> bool:
        """Whether the bare application itself was not steady."""
        return self.bare.spread > TOO_NOISY * self.bare.value


def judge(figure: Figure, budget: float, least: float | None = None) -> str:
    """Say whether a budget is met, as far as the interval tells, and whether the least that has to be would meet it."""
    if not figure.enough:
        return "too few turns to tell"
    if figure.high <= budget:
        return "met"
    told = "BROKEN" if figure.low > budget else "too noisy to tell"
    return told if least is None or least < budget else f"{told}, as the least is"


def percentile(ordered: Sequence[float], part: float) -> float:
    """Give the value below which `part` of them are."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
