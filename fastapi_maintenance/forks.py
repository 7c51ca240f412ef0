"""What a forked child must not share with its parent: locks, descriptors, threads, counts."""

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something that has to begin anew in a forked child."""

    def after_fork(self) -> None:
        """Forget what belongs to the parent; called in the child before anything else runs there."""
        ...


class _Following:
    """What is told of forks: `os.register_at_fork` cannot take anything back, so it is used once."""

    followers: "WeakSet[Forked]" = WeakSet()  # noqa: RUF012 - shared on purpose

    @classmethod
    def tell(cls) -> None:
        """Tell all, in the child."""
        for follower in list(cls.followers):
            follower.after_fork()


def follow_forks(follower: Forked) -> None:
    """Call `follower.after_fork()` in each child that is forked while `follower` lives."""
    _Following.followers.add(follower)


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_Following.tell)
