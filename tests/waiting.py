"""How tests wait: for a condition, with a bound."""

import threading

import anyio

PATIENCE = 20
"""Seconds after which a condition that does not come true is a failure."""


async def until(condition):
    """Wait until a condition is true."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.001)


def ends(function):
    """Run `function` in a thread, and tell whether it ever returned."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()
