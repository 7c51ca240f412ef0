"""Who wins: the table of six rows, as a function without I/O."""

from itertools import product

import pytest

from fastapi_maintenance.decision import Verdict, decide
from fastapi_maintenance.marks import Mark
from fastapi_maintenance.state import MODES

READS = ["GET", "HEAD", "OPTIONS", "QUERY"]
WRITES = ["POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "get", "", None]
MARKS = [None, *Mark]


@pytest.mark.parametrize("operation", [True, False])
@pytest.mark.parametrize("method", READS + WRITES)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_row_1_forced_on_refuses_whatever_else_holds(mode, method, operation):
    """An endpoint that is forced on is refused in each mode, for each method, and no exemption is asked."""
    assert decide(Mark.FORCED_ON, mode, method, operation=operation) is Verdict.REFUSED


@pytest.mark.parametrize("operation", [True, False])
@pytest.mark.parametrize("method", READS + WRITES)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_row_2_forced_off_lets_through(mode, method, operation):
    """An endpoint that is forced off is let through in each mode, for each method."""
    assert decide(Mark.FORCED_OFF, mode, method, operation=operation) is Verdict.FORCED_OFF


@pytest.mark.parametrize("method", READS + WRITES)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_row_3_no_operation_is_the_frameworks_own_answer(mode, method):
    """Where no operation matches the request is let through to the framework's answer, also while closed."""
    assert decide(None, mode, method, operation=False) is Verdict.ADMITTED


@pytest.mark.parametrize("method", READS + WRITES)
def test_row_5_full_refuses_unless_exempt(method):
    """In the mode `full` each method and a websocket is refused, unless row 4 finds an exemption."""
    assert decide(None, "full", method) is Verdict.REFUSED_UNLESS_EXEMPT


@pytest.mark.parametrize("method", READS)
def test_row_5_read_only_lets_reads_pass(method):
    """In the mode `read_only` the four safe methods pass."""
    assert decide(None, "read_only", method) is Verdict.ADMITTED


@pytest.mark.parametrize("method", WRITES)
def test_row_5_read_only_refuses_the_rest_unless_exempt(method):
    """In the mode `read_only` any other method, and a websocket, is refused unless exempt."""
    assert decide(None, "read_only", method) is Verdict.REFUSED_UNLESS_EXEMPT


@pytest.mark.parametrize("method", READS + WRITES)
def test_row_6_otherwise_it_is_let_through(method):
    """While nothing is active every request to an unmarked endpoint is let through."""
    assert decide(None, None, method) is Verdict.ADMITTED


def table(mark, mode, method, *, operation, exempt):
    """Read the six rows from top to bottom: is the request let through?"""
    rows = [
        (mark is Mark.FORCED_ON, False),
        (mark is Mark.FORCED_OFF, True),
        (not operation, True),
        (exempt, True),
        (mode == "full", False),
        (mode == "read_only", method in READS),
        (True, True),
    ]
    return next(through for holds, through in rows if holds)


@pytest.mark.parametrize("exempt", [True, False])
@pytest.mark.parametrize("operation", [True, False])
def test_every_case_is_decided_by_the_first_row_that_holds(operation, exempt):
    """For all marks, modes and methods the verdict, with the exemption asked where it says so, is that of the table."""
    through = {Verdict.ADMITTED, Verdict.FORCED_OFF} | ({Verdict.REFUSED_UNLESS_EXEMPT} if exempt else set())
    for mark, mode, method in product(MARKS, [None, *MODES], READS + WRITES):
        verdict = decide(mark, mode, method, operation=operation)
        expected = table(mark, mode, method, operation=operation, exempt=exempt)
        assert (verdict in through) is expected, (mark, mode, method)


def test_exemptions_are_asked_only_when_the_answer_would_be_a_refusal():
    """The verdict that asks for exemptions comes in no case that is open, forced or without operation."""
    asked = {
        (mark, mode, operation)
        for mark, mode, method, operation in product(MARKS, [None, *MODES], READS + WRITES, [True, False])
        if decide(mark, mode, method, operation=operation) is Verdict.REFUSED_UNLESS_EXEMPT
    }
    assert asked == {(None, mode, True) for mode in MODES}


def test_an_operation_is_the_default():
    """Without being told otherwise, the request is for an operation."""
    assert decide(None, "full", "GET") is decide(None, "full", "GET", operation=True)
