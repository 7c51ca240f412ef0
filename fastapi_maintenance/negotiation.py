"""Which form of an answer a client prefers (RFC 9110 section 12.5.1)."""

from functools import lru_cache

_RANGES = 64
"""Media ranges that are read of one request; more are noise."""

_KNOWN = 64
_SHORT = 256
"""Characters of a header that is worth remembering: a browser's has about 130."""


class _Range:
    """A media range and its weight."""

    def __init__(self, kind: str, subtype: str, weight: float) -> None:
        self.kind = kind
        self.subtype = subtype
        self.weight = weight

    def specificity(self, kind: str, subtype: str) -> int:
        """Give 2 for the very type, 1 for `kind/*`, 0 for `*/*`, -1 where it does not match."""
        if self.kind == "*":
            return 0 if self.subtype == "*" else -1
        if self.kind != kind:
            return -1
        return {subtype: 2, "*": 1}.get(self.subtype, -1)


def preferred(accept: str, offers: tuple[str, ...]) -> str:
    """Choose among `offers`, in the server's own order of preference.

    Args:
        accept: The `Accept` header, or an empty string.
        offers: Media types without parameters; the first is the default.

    Returns:
        The offer of the highest weight; among equals the one that was named more exactly, then the earlier one. The
        default where nothing is acceptable, for an answer in another form says more than none.
    """
    return (_choose_again if len(accept) <= _SHORT else _choose)(accept, offers)


def _choose(accept: str, offers: tuple[str, ...]) -> str:
    ranges = [read for item in accept.split(",")[:_RANGES] if (read := _read(item)) is not None]
    if not ranges:
        return offers[0]
    best, best_rank = offers[0], (0.0, -1)
    for offer in offers:
        kind, _, subtype = offer.partition("/")
        specificity, weight = max((known.specificity(kind, subtype), known.weight) for known in ranges)
        if specificity >= 0 and weight > 0 and (weight, specificity) > best_rank:
            best, best_rank = offer, (weight, specificity)
    return best


_choose_again = lru_cache(_KNOWN)(_choose)


def _read(item: str) -> _Range | None:
    """Read one media range, `None` when it is malformed. Of its parameters, only the weight counts."""
    media, *parameters = (part.strip().lower() for part in item.split(";"))
    kind, _, subtype = media.partition("/")
    if not kind or not subtype:
        return None
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() != "q":
            continue
        try:
            weight = float(value)
        except ValueError:
            return None
        return _Range(kind, subtype, weight) if 0 <= weight <= 1 else None
    return _Range(kind, subtype, weight)
