"""The decorators leave a mark on an endpoint and nothing else."""

import functools
import inspect
from unittest.mock import Mock

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_maintenance import MaintenanceModeMiddleware, force_maintenance_mode_off, force_maintenance_mode_on
from fastapi_maintenance.marks import Mark, Marks, mark_of

ON, OFF = force_maintenance_mode_on, force_maintenance_mode_off
both = pytest.mark.parametrize(("decorator", "mark"), [(ON, Mark.FORCED_ON), (OFF, Mark.FORCED_OFF)])
opposites = pytest.mark.parametrize(("first", "second"), [(ON, OFF), (OFF, ON)])


def plain():
    """Make a function."""
    return lambda: 1


def coroutine():
    """Make an `async def`."""

    async def endpoint(item_id: int) -> dict: ...

    return endpoint


def generator():
    """Make a generator function."""

    def endpoint():
        yield

    return endpoint


def async_generator():
    """Make an async generator function."""

    async def endpoint():
        yield

    return endpoint


def websocket():
    """Make a websocket endpoint."""

    async def endpoint(websocket): ...

    return endpoint


def callable_object():
    """Make an object with `__call__`."""

    class Endpoint:
        def __call__(self): ...

    return Endpoint()


def callable_class():
    """Make a class, called for its objects."""

    class Endpoint: ...

    return Endpoint


def partial():
    """Make a partial."""
    return functools.partial(plain(), 1)


def cached():
    """Make what a decorator of the standard library gives."""
    return functools.lru_cache(plain())


KINDS = [
    plain,
    coroutine,
    generator,
    async_generator,
    websocket,
    callable_object,
    callable_class,
    partial,
    cached,
]


@both
@pytest.mark.parametrize("make", KINDS)
def test_a_decorator_gives_back_what_it_was_given(make, decorator, mark):
    """A decorator returns the same object, which carries the mark from then on and had none before."""
    endpoint = make()
    assert mark_of(endpoint) is None
    assert decorator(endpoint) is endpoint
    assert mark_of(endpoint) is mark


@both
def test_name_signature_and_kind_stay(decorator, mark):
    """A marked function is called, named and inspected as before."""
    endpoint = decorator(coroutine())
    assert inspect.iscoroutinefunction(endpoint)
    assert list(inspect.signature(endpoint).parameters) == ["item_id"]
    assert endpoint.__name__ == "endpoint"
    assert decorator(plain())() == 1
    assert mark_of(endpoint) is mark


@both
@pytest.mark.anyio
async def test_marked_generators_generate(decorator, mark):
    """A marked generator function, sync or async, gives what it gave before."""
    many, later = decorator(generator()), decorator(async_generator())
    assert [list(many()), [item async for item in later()]] == [[None], [None]]
    assert mark_of(many) is mark_of(later) is mark


@both
def test_marking_twice_alike_is_fine(decorator, mark):
    """The same mark again changes nothing."""
    assert mark_of(decorator(decorator(plain()))) is mark


@both
def test_each_mark_is_counted(decorator, mark):
    """The number of marks set in the process grows, so that gates look anew."""
    before = Marks.count
    assert mark_of(decorator(plain())) is mark
    assert Marks.count == before + 1


# Wrappers


@both
@pytest.mark.parametrize("depth", [1, 5])
def test_wraps_keeps_the_mark(decorator, mark, depth):
    """The mark is found through any number of decorators that use `functools.wraps`."""
    wrapped = decorator(coroutine())
    for _ in range(depth):
        wrapped = functools.wraps(wrapped)(plain())
    assert mark_of(wrapped) is mark


@both
def test_wraps_keeps_a_mark_that_comes_later(decorator, mark):
    """A mark set on a function after it was wrapped is found through its wrapper."""
    inner = coroutine()
    outer = functools.wraps(inner)(plain())
    decorator(inner)
    assert mark_of(outer) is mark


@both
@pytest.mark.parametrize(
    "wrap",
    [
        lambda function: functools.partial(function, 1),
        lambda function: functools.partial(functools.partial(function, 1), 2),
        lambda function: functools.partial(functools.wraps(function)(plain()), 1),
        lambda function: functools.update_wrapper(functools.partial(function), function, updated=()),
    ],
    ids=["partial", "partial of partial", "partial of wraps", "wraps of partial"],
)
def test_partial_keeps_the_mark(decorator, mark, wrap):
    """The mark is found through a partial, a partial of a partial, and partials mixed with `functools.wraps`."""
    later = coroutine()
    outer = wrap(later)
    decorator(later)
    assert mark_of(outer) is mark
    assert mark_of(wrap(decorator(coroutine()))) is mark


@both
def test_a_mark_on_a_partial_stays_there(decorator, mark):
    """Marking a partial marks this one, not the function that others use, too."""
    function = coroutine()
    assert mark_of(decorator(functools.partial(function, 1))) is mark
    assert mark_of(function) is None


def test_a_loop_of_wrappers_is_unmarked():
    """Functions that wrap each other without end count as unmarked, and can be marked."""
    one, two = plain(), plain()
    one.__wrapped__, two.__wrapped__ = two, one
    assert mark_of(one) is None
    assert mark_of(ON(two)) is Mark.FORCED_ON
    assert mark_of(one) is Mark.FORCED_ON


# Methods and classes


@both
def test_methods_are_marked_in_the_class_body(decorator, mark):
    """Methods, static and class methods carry the mark through the class and through its objects, in either order."""

    class Endpoints:
        @decorator
        def method(self): ...

        @staticmethod
        @decorator
        def below_static(): ...

        @decorator
        @staticmethod
        def above_static(): ...

        @classmethod
        @decorator
        def below_class(cls): ...

        @decorator
        @classmethod
        def above_class(cls): ...

    names = ["method", "below_static", "above_static", "below_class", "above_class"]
    assert {mark_of(getattr(owner, name)) for owner in (Endpoints, Endpoints()) for name in names} == {mark}
    assert isinstance(vars(Endpoints)["above_static"], staticmethod)
    assert isinstance(vars(Endpoints)["above_class"], classmethod)


@both
def test_a_mark_on_call_counts_for_the_objects(decorator, mark):
    """A mark on a class's `__call__` is that of its objects, whatever attributes they have, not of the class."""

    class Endpoint:
        def __init__(self, func=None, wrapped=None):
            self.func = func
            self.__wrapped__ = wrapped

        @decorator
        def __call__(self): ...

    assert mark_of(Endpoint()) is mark
    assert mark_of(Endpoint(func=plain(), wrapped=plain())) is mark
    assert mark_of(functools.partial(Endpoint(), 1)) is mark
    assert mark_of(Endpoint) is None


def test_an_attribute_of_the_name_func_is_no_partial():
    """An object that merely keeps a marked function in `func` is not marked by it."""
    endpoint = callable_object()
    endpoint.func = ON(plain())
    assert mark_of(endpoint) is None


@pytest.mark.parametrize("unknown", [None, 5, "x", Mock(), object(), len, dict, [].append])
def test_what_cannot_be_identified_is_unmarked(unknown):
    """Things that are no endpoints, and mocks that have every attribute, count as unmarked."""
    assert mark_of(unknown) is None


# Errors


class Slotted:
    """Its objects take no attributes."""

    __slots__ = ()

    def __call__(self): ...

    def method(self): ...


@both
@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        (Slotted().method, r"Slotted\.method, a method"),
        (Slotted(), ".*Slotted object.*, a Slotted"),
        (len, "len, a builtin_function_or_method"),
        (dict, "dict, a type"),
        ([].append, r"list\.append, a builtin_function_or_method"),
    ],
)
def test_what_takes_no_mark_is_an_error_that_says_what_to_do(endpoint, kind, decorator, mark):
    """A bound method, a builtin or an object without attributes is a `TypeError` that tells where the mark can go."""
    counted = Marks.count
    with pytest.raises(
        TypeError,
        match=rf"^@{mark.value} cannot be put on {kind}: mark the function where it is defined "
        r"\(for a method, in the class body\), or wrap it in a function$",
    ):
        decorator(endpoint)
    assert Marks.count == counted


@both
@pytest.mark.parametrize("thing", [None, 5, "/path", property(plain())])
def test_what_cannot_be_called_is_an_error(thing, decorator, mark):
    """A thing that is no endpoint at all is a `TypeError`, as when the decorator's brackets are written by mistake."""
    with pytest.raises(TypeError, match=rf"^@{mark.value} goes on an endpoint \(a function\), not on "):
        decorator(thing)


@opposites
@pytest.mark.parametrize("make", KINDS)
def test_contradicting_marks_are_an_error(make, first, second):
    """The opposite mark on a marked endpoint is a `TypeError` that names the one to remove; the first one stays."""
    endpoint = first(make())
    kept = mark_of(endpoint)
    with pytest.raises(TypeError, match=rf"is already marked @{kept.value}; remove one of the two decorators$"):
        second(endpoint)
    assert mark_of(endpoint) is kept


@opposites
@pytest.mark.parametrize(
    "wrap",
    [
        functools.partial,
        lambda function: functools.wraps(function)(plain()),
        staticmethod,
        classmethod,
    ],
    ids=["partial", "wraps", "staticmethod", "classmethod"],
)
def test_contradicting_marks_are_found_through_wrappers(wrap, first, second):
    """A wrapper, a partial, a static or class method of a marked function cannot be marked the other way."""
    with pytest.raises(TypeError, match="is already marked"):
        second(wrap(first(plain())))


@opposites
def test_an_object_cannot_contradict_its_class(first, second):
    """An object whose class marks `__call__` cannot be marked the other way."""

    class Endpoint:
        @first
        def __call__(self): ...

    with pytest.raises(TypeError, match="is already marked"):
        second(Endpoint())


# With an application


@both
def test_a_mark_acts_above_and_below_the_route_decorator(decorator, mark):
    """An endpoint marked above or below the route decorator is forced, while open and while closed."""
    app = FastAPI()

    @app.get("/below")
    @decorator
    def below():
        return 1

    @decorator
    @app.get("/above")
    def above():
        return 1

    expected = 503 if mark is Mark.FORCED_ON else 200
    for enabled in (True, False):
        client = TestClient(MaintenanceModeMiddleware(app, enable_maintenance=enabled))
        assert [client.get(path).status_code for path in ("/below", "/above")] == [expected, expected]
