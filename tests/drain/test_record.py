"""The record and the check, tested before they judge anything."""

import itertools
import os
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drain.record import REQUESTS, WINDOWS, Record, Span, note_kill, overlaps, spans


def span(begin, end, pid=1):
    """Make up something that ran."""
    return Span(begin, end, pid, "made-up")


@pytest.mark.parametrize(
    ("window", "request_", "found"),
    [
        ((10, 20), (0, 9), False),
        ((10, 20), (0, 10), False),
        ((10, 20), (0, 11), True),
        ((10, 20), (12, 13), True),
        ((10, 20), (19, 30), True),
        ((10, 20), (20, 30), False),
        ((10, 20), (0, 30), True),
        ((10, 20), (0, inf), True),
        ((10, inf), (50, 51), True),
        ((10, 20), (21, inf), False),
    ],
)
def test_an_overlap_is_one_of_more_than_a_moment(window, request_, found):
    """A window and a request overlap when both run for some time together; to touch is not to overlap."""
    assert bool(overlaps([span(*window)], [span(*request_)])) is found


made_up = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)).map(lambda at: span(at[0], at[0] + at[1])))


@given(windows=made_up, requests=made_up)
def test_every_overlap_is_found_and_nothing_else(windows, requests):
    """The check finds exactly the pairs that a comparison of all with all finds."""
    expected = [
        (window, request)
        for window, request in itertools.product(sorted(windows), sorted(requests))
        if max(window.begin, request.begin) < min(window.end, request.end)
        or (window.begin < request.begin == request.end < window.end)
        or (request.begin < window.begin == window.end < request.end)
    ]
    assert sorted(overlaps(windows, requests)) == sorted(expected)


def test_what_runs_is_recorded_with_its_begin_and_end(tmp_path):
    """A span that ended has both times, one that failed, too, in the order of this machine's clock."""
    record = Record(tmp_path, REQUESTS)
    with record.span("outer", asked=7), pytest.raises(ArithmeticError), record.span("inner"):
        raise ArithmeticError
    outer, inner = spans(tmp_path, REQUESTS)
    assert (outer.kind, outer.asked, outer.pid, inner.kind) == ("outer", 7, os.getpid(), "inner")
    assert outer.begin < inner.begin < inner.end < outer.end
    assert spans(tmp_path, WINDOWS) == []


def test_what_ended_before_its_block_says_when(tmp_path):
    """A span that is told of an earlier end ended then."""
    with Record(tmp_path, WINDOWS).span("window") as ended:
        ended.append(5)
    assert spans(tmp_path, WINDOWS)[0].end == 5


def test_what_never_ended_overlaps_all_that_comes_later(tmp_path):
    """What has no end goes on for ever, unless its process was killed: then it ended there, but not before."""
    record = Record(tmp_path, REQUESTS)
    open_end = record.span("open")
    open_end.__enter__()
    assert spans(tmp_path, REQUESTS)[0].end == inf
    note_kill(tmp_path, os.getpid() + 1)
    assert spans(tmp_path, REQUESTS)[0].end == inf
    note_kill(tmp_path, os.getpid())
    assert spans(tmp_path, REQUESTS)[0].begin < spans(tmp_path, REQUESTS)[0].end < inf
    open_end.__exit__(None, None, None)


def test_a_forked_process_has_a_record_of_its_own(tmp_path, monkeypatch):
    """After a fork the child writes to another file than its parent."""
    record = Record(tmp_path, REQUESTS)
    for pid in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        with record.span("either"):
            pass
    assert [found.pid for found in spans(tmp_path, REQUESTS)] == [11, 12]
