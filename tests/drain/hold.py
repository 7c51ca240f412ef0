"""Windows: blocks in which nothing may run. As a script it holds them from a process of its own."""

import asyncio
import json
import os
import random
import sys
import time
from contextlib import suppress

import anyio

from fastapi_maintenance import BackendError, DrainIncomplete, DrainTimeout, Maintenance, NoWorkers
from tests.drain.record import WINDOWS, Record

DRAIN = 20.0
"""Seconds; longer than anything takes, a stopped worker included."""

LONGEST = float(os.environ.get("DRAIN_LONGEST_WINDOW", "0.01"))
"""Seconds that a window takes at most."""

UNANSWERED = (DrainIncomplete, DrainTimeout) if "redis" in os.environ["FASTAPI_MAINTENANCE_BACKEND"] else ()
"""What a fleet says of workers that were killed or are cut off; on one machine the kernel answers for them."""


async def hold_windows(maintenance, count, *, min_workers=1):
    """Hold so many windows, one after another with a little time between; give how long each took to enter, in ms."""
    record = Record(os.environ["DRAIN_RECORDS"], WINDOWS)
    chance = random.Random(os.getpid())  # noqa: S311 - no secret
    entering = []
    while len(entering) < count:
        asked = time.monotonic_ns()
        # The state may be rubbish just now, a worker cut off, or the last one killed: then nothing has happened.
        with suppress(BackendError, NoWorkers, *UNANSWERED):
            async with maintenance.on(drain=DRAIN, min_workers=min_workers) as hold:
                if hold.lost:
                    continue
                with record.span("window", asked) as ended:
                    entering.append((time.monotonic_ns() - asked) / 1e6)
                    end = time.monotonic() + chance.uniform(0, LONGEST)
                    while (step := time.monotonic_ns()) < end * 1e9 and not hold.lost:
                        ended[:] = [step]
                        await anyio.sleep(0.001)
                    # A body looks before each step: its last one was before the hold was lost, however long it slept.
                    if not hold.lost:
                        ended.clear()
        await anyio.sleep(chance.uniform(0.05, 0.15))
    return entering


if __name__ == "__main__":
    print(json.dumps(asyncio.run(hold_windows(Maintenance(), int(sys.argv[1])))))  # noqa: T201 - a script
