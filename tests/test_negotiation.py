"""Choosing the form of an answer by the `Accept` header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_maintenance.negotiation import preferred

JSON, PROBLEM, HTML, TEXT = OFFERS = ("application/json", "application/problem+json", "text/html", "text/plain")

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("Application/JSON", JSON),
        ("application/problem+json", PROBLEM),
        ("application/json, application/problem+json", JSON),
        ("application/json;q=0.9, application/problem+json", PROBLEM),
        ("application/problem+json, */*", PROBLEM),
        ("text/html", HTML),
        (FIREFOX, HTML),
        ("text/*", HTML),
        ("text/*, text/plain;q=0.5", HTML),
        ("text/*;q=0.5, text/plain", TEXT),
        ("text/html;q=0.5, text/plain;q=0.6", TEXT),
        ("text/html;q=0, */*", JSON),
        ("application/json;q=0, */*;q=0.1", PROBLEM),
        ("text/html; q=0.5 ; charset=utf-8, text/plain;q=0.4", HTML),
        ("text/html;level=1", HTML),
        ("image/png", JSON),
        ("*/html", JSON),
        ("*/*;q=0", JSON),
        ("text/plain;q=high", JSON),
        ("text/plain;q=2", JSON),
        ("text/plain;q=nan", JSON),
        ("rubbish", JSON),
        ("/", JSON),
        (",,;;,", JSON),
        (", ".join(["image/png"] * 64 + ["text/html"]), JSON),
    ],
)
def test_preference(accept, chosen):
    """The offer of the highest weight wins, named exactly before by a wildcard, and JSON is the default."""
    assert preferred(accept, OFFERS) == chosen


@given(
    st.text()
    | st.lists(st.sampled_from([*OFFERS, "text/*", "*/*", ";q=0", ";q=0.5", ";q=1", ",", ";", "/"])).map("".join)
)
def test_any_header_gives_an_offer(accept):
    """Whatever a client sends, one of the offers comes out."""
    assert preferred(accept, OFFERS) in OFFERS


@given(st.permutations(["text/html;q=0.4", "text/*;q=0.9", "application/json;q=0.3", "*/*;q=0.1"]))
def test_the_order_of_the_header_does_not_matter(ranges):
    """Only weights and exactness count, not the order in which a client names them."""
    assert preferred(",".join(ranges), OFFERS) == TEXT
