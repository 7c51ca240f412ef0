"""What the OpenAPI description says of refusals, and that programs made from it understand them."""

import gc
import importlib.util
import json
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import anyio
import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.middleware import Middleware

from fastapi_maintenance import (
    Maintenance,
    MaintenanceModeMiddleware,
    MaintenanceRoute,
    MaintenanceSettings,
    force_maintenance_mode_off,
    force_maintenance_mode_on,
    get_maintenance,
)
from fastapi_maintenance.backends import MemoryBackend
from fastapi_maintenance.refusal import _FORMS

OWN = {"description": "own"}
FINE = {"200": "Successful Response"}
CLOSED = FINE | {"503": "Closed for maintenance"}
ALWAYS = FINE | {"503": "Always closed for maintenance"}


def made(**configured):
    """Give an object of its own that is open."""
    return Maintenance(MaintenanceSettings(**configured), backend=MemoryBackend())


def described(app, path="/x", method="get"):
    """Give what an operation says of each code."""
    return {code: told["description"] for code, told in app.openapi()["paths"][path][method]["responses"].items()}


def as_it_is(endpoint):
    """Leave an endpoint unmarked."""
    return endpoint


def endpoint_of(marked):
    """Give a new endpoint."""
    return marked(lambda: 1)


# Each way to stand behind a gate gives an app with `/x`.


def app_level(maintenance, marked=as_it_is, **route):
    app = FastAPI(dependencies=[Depends(maintenance.guard)])
    app.add_api_route("/x", endpoint_of(marked), **route)
    return app


def router_level(maintenance, marked=as_it_is, **route):
    app, router = FastAPI(), APIRouter(dependencies=[Depends(maintenance.guard)])
    router.add_api_route("/x", endpoint_of(marked), **route)
    app.include_router(router)
    return app


def include_level(maintenance, marked=as_it_is, **route):
    app, outer, router = FastAPI(), APIRouter(), APIRouter()
    router.add_api_route("/x", endpoint_of(marked), **route)
    outer.include_router(router, dependencies=[Depends(maintenance.guard)])
    app.include_router(outer)
    return app


def route_level(maintenance, marked=as_it_is, **route):
    app = FastAPI()
    app.add_api_route("/x", endpoint_of(marked), dependencies=[Depends(maintenance.guard)], **route)
    return app


def parameter_level(maintenance, marked=as_it_is, **route):
    app = FastAPI()

    def endpoint(_: Annotated[None, Depends(maintenance.guard)]): ...

    app.add_api_route("/x", marked(endpoint), **route)
    return app


def below_a_dependency(maintenance, marked=as_it_is, **route):
    app = FastAPI()

    def session(_: Annotated[None, Depends(maintenance.guard)]): ...

    app.add_api_route("/x", endpoint_of(marked), dependencies=[Depends(session)], **route)
    return app


def guard_unless(maintenance, marked=as_it_is, **route):
    app = FastAPI(dependencies=[Depends(maintenance.guard_unless(lambda: False))])
    app.add_api_route("/x", endpoint_of(marked), **route)
    return app


def middleware(maintenance, marked=as_it_is, **route):
    app = FastAPI()
    app.add_api_route("/x", endpoint_of(marked), **route)
    app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def middleware_in_the_list(maintenance, marked=as_it_is, **route):
    app = FastAPI(middleware=[Middleware(MaintenanceModeMiddleware, maintenance=maintenance)])
    app.add_api_route("/x", endpoint_of(marked), **route)
    return app


def route_class(maintenance, marked=as_it_is, **route):
    app, router = FastAPI(), APIRouter(route_class=maintenance.route_class)
    router.add_api_route("/x", endpoint_of(marked), **route)
    app.include_router(router)
    return app


WITH_DESCRIBE = [
    app_level,
    router_level,
    include_level,
    route_level,
    parameter_level,
    below_a_dependency,
    guard_unless,
    middleware,
    middleware_in_the_list,
]
each_key = pytest.mark.parametrize("key", [503, "503"], ids=["number", "text"])
every_way = pytest.mark.parametrize("way", [*WITH_DESCRIBE, route_class])


# What is told


@every_way
def test_an_operation_behind_a_gate_tells(way):
    """`describe(app)` documents the refusal of each operation behind a gate of the object, as it is then served."""
    maintenance = made()
    app = way(maintenance)
    maintenance.describe(app)
    assert described(app) == CLOSED
    anyio.run(maintenance.enable)
    client = TestClient(app)
    assert client.get("/x").status_code == 503
    assert client.get("/openapi.json").json() == app.openapi()


@pytest.mark.parametrize("way", WITH_DESCRIBE)
def test_without_describe_nothing_is_told(way):
    """Guard and middleware document nothing where nobody asked for it."""
    assert described(way(made())) == FINE


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("bound", [True, False])
def test_the_route_class_tells_by_itself(prefix, bound):
    """Routes of the route class, bound or not, need no `describe`, whether they are direct or included."""
    app, kind = FastAPI(), made().route_class if bound else MaintenanceRoute
    app.router.route_class = kind
    app.add_api_route("/direct", lambda: 1)
    router = APIRouter(route_class=kind)
    router.add_api_route("/x", lambda: 1)
    app.include_router(router, prefix=prefix)
    assert (described(app, "/direct"), described(app, f"{prefix}/x")) == (CLOSED, CLOSED)


def test_what_is_told_is_what_is_sent():
    """Media types, headers and members of the description are those of a refusal."""
    maintenance = made()
    app = route_class(maintenance)
    told = app.openapi()["paths"]["/x"]["get"]["responses"]["503"]
    anyio.run(maintenance.enable)
    sent = [TestClient(app).get("/x", headers={"Accept": form}) for form in _FORMS]
    assert list(told["content"]) == [response.headers["Content-Type"].partition(";")[0] for response in sent]
    assert all(set(told["headers"]) <= {name.title() for name in response.headers} for response in sent)
    assert told["headers"]["Retry-After"]["schema"] == {"type": "integer", "minimum": 1}
    for response in sent[:2]:
        schema = told["content"][response.headers["Content-Type"]]["schema"]
        assert list(schema["properties"]) == list(response.json())
        assert set(schema["properties"]) - set(schema["required"]) == {"applied"}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("mark", "told"), [(force_maintenance_mode_off, FINE), (force_maintenance_mode_on, ALWAYS), (as_it_is, CLOSED)]
)
@every_way
def test_marks(way, mark, told, late):
    """An operation that is forced off has no refusal, one that is forced on says so; late marks count."""
    endpoints = []
    maintenance = made()
    app = way(maintenance, lambda endpoint: endpoints.append(endpoint) or (endpoint if late else mark(endpoint)))
    maintenance.describe(app)
    mark(endpoints[0])
    assert described(app) == told


@every_way
@each_key
def test_a_routes_own_503_wins(way, key):
    """What a route itself says of the code stays, as a number and as text."""
    maintenance = made()
    app = way(maintenance, responses={key: OWN})
    maintenance.describe(app)
    assert app.openapi()["paths"]["/x"]["get"]["responses"]["503"] == OWN


@each_key
@pytest.mark.parametrize("gate", ["guard", "middleware", "none"])
@pytest.mark.parametrize("place", ["app", "router", "include"])
def test_an_inherited_503_wins(gate, key, place):
    """So does what the application, its router or an `include_router` says, under guard and middleware."""
    maintenance, own = made(), {key: OWN}
    dependencies = [Depends(maintenance.guard)] if gate == "guard" else []
    app = FastAPI(dependencies=dependencies, responses=own if place == "app" else None)
    router = APIRouter(responses=own if place == "router" else None)
    router.add_api_route("/x", lambda: 1)
    app.include_router(router, responses=own if place == "include" else None)
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    maintenance.describe(app)
    assert app.openapi()["paths"]["/x"]["get"]["responses"]["503"] == OWN


@each_key
def test_a_503_of_its_router_wins_over_the_route_class(key):
    """So does what the router of a route class says."""
    app, router = FastAPI(), APIRouter(route_class=MaintenanceRoute, responses={key: OWN})
    router.add_api_route("/x", lambda: 1)
    app.include_router(router)
    assert app.openapi()["paths"]["/x"]["get"]["responses"]["503"] == OWN


@every_way
def test_own_status_code(way):
    """The refusal stands under the configured status code, beside a 503 of the route."""
    maintenance = made(status_code=529)
    app = way(maintenance, responses={503: OWN})
    maintenance.describe(app)
    assert described(app) == FINE | {"503": "own", "529": "Closed for maintenance"}


@every_way
def test_another_object_tells_nothing(way):
    """An object describes what is behind its own gates alone."""
    app = way(made(status_code=529))
    other = made(status_code=530)
    other.describe(app)
    assert "530" not in described(app)


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"maintenance": None}, {"exempt_handler": bool}])
def test_an_unbound_middleware_is_the_default_objects(default, arguments):
    """A middleware without an object serves the default one, and that one describes it."""
    app = FastAPI()
    app.add_api_route("/x", lambda: 1)
    app.add_middleware(MaintenanceModeMiddleware, **arguments)
    maintenance = get_maintenance() if default else made()
    maintenance.describe(app)
    assert described(app) == (CLOSED if default else FINE)


def test_a_middleware_with_a_backend_is_its_own():
    """A middleware with a backend of its own is not the default object's."""
    app = FastAPI()
    app.add_api_route("/x", lambda: 1)
    app.add_middleware(MaintenanceModeMiddleware, backend=MemoryBackend())
    get_maintenance().describe(app)
    assert described(app) == FINE


@pytest.mark.parametrize(
    ("served", "told"), [("guard", True), ("default", True), ("override", True), ("another", False)]
)
def test_an_unbound_route_class_is_described_by_the_object_that_serves_it(served, told):
    """Routes of the unbound route class belong to the object that an override, a guard or the default makes serve."""
    maintenance = get_maintenance() if served == "default" else made(status_code=529)
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if served == "guard" else [])
    app.dependency_overrides = {get_maintenance: lambda: maintenance} if served == "override" else {}
    router = APIRouter(route_class=MaintenanceRoute)
    router.add_api_route("/x", lambda: 1)
    app.include_router(router)
    maintenance.describe(app)
    assert (str(maintenance.settings.status_code) in described(app)) is told


def test_the_default_object_leaves_routes_that_a_guard_serves(monkeypatch):
    """Where another object's guard stands before the unbound route class, the default object does not describe it."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_STATUS_CODE", "530")
    app = FastAPI(dependencies=[Depends(made(status_code=529).guard)])
    app.router.route_class = MaintenanceRoute
    app.add_api_route("/x", lambda: 1)
    get_maintenance().describe(app)
    assert described(app) == CLOSED


def test_what_no_gate_covers_tells_nothing():
    """Operations beside the guarded ones, other methods and paths are left as they are."""
    app, maintenance = FastAPI(), made()
    guarded = APIRouter(dependencies=[Depends(maintenance.guard)])
    guarded.add_api_route("/x", lambda: 1)
    guarded.add_api_route("/hidden", lambda: 1, include_in_schema=False)
    app.include_router(guarded, prefix="/api")
    app.add_api_route("/api/x", lambda: 1, methods=["POST"])
    app.add_api_route("/x", lambda: 1)
    maintenance.describe(app)
    found = [described(app, "/api/x"), described(app, "/api/x", "post"), described(app, "/x")]
    assert found == [CLOSED, FINE, FINE]
    assert set(app.openapi()["paths"]) == {"/api/x", "/x"}


@pytest.mark.skipif(
    tuple(map(int, fastapi.__version__.split(".")[:2])) < (0, 137), reason="FastAPI describes only once before 0.137"
)
def test_routes_that_are_added_later():
    """Routes that come after the description was asked for are described as well."""
    maintenance = made()
    app = app_level(maintenance)
    router = APIRouter()
    app.include_router(router)
    maintenance.describe(app)
    assert set(app.openapi()["paths"]) == {"/x"}
    app.add_api_route("/later", lambda: 1)
    router.add_api_route("/included", lambda: 1)
    assert {path: described(app, path) for path in app.openapi()["paths"]} == {
        "/x": CLOSED,
        "/later": CLOSED,
        "/included": CLOSED,
    }


def test_a_mounted_application_describes_itself():
    """A mounted application has a description of its own, which `describe` of it extends."""
    maintenance = made()
    outer, inner = middleware(maintenance), app_level(maintenance)
    outer.mount("/inner", inner)
    maintenance.describe(outer)
    assert (described(outer), described(inner)) == (CLOSED, FINE)
    maintenance.describe(inner)
    assert TestClient(outer).get("/inner/openapi.json").json()["paths"]["/x"]["get"]["responses"]["503"]


def test_a_description_of_ones_own_is_extended():
    """An `openapi` that the user replaced is asked, and what it gives anew each time tells each time."""
    maintenance = made()
    app = app_level(maintenance)
    made_by_fastapi = app.openapi()
    app.openapi = lambda: json.loads(json.dumps(made_by_fastapi)) | {"x-mine": True}
    maintenance.describe(app)
    assert [described(app), described(app)] == [CLOSED, CLOSED]
    assert app.openapi()["x-mine"]


@pytest.mark.parametrize("way", [app_level, route_class])
def test_operations_do_not_share_what_they_tell(way):
    """Who extends the description of one operation does not change that of another, nor that of another app."""
    maintenance = made()
    app = way(maintenance)
    app.router.route_class = maintenance.route_class
    app.add_api_route("/y", lambda: 1)
    maintenance.describe(app)
    paths = app.openapi()["paths"]
    first, second = (paths[path]["get"]["responses"]["503"]["content"] for path in ("/x", "/y"))
    first["application/json"]["schema"]["description"] = first["text/html"]["schema"]["description"] = "changed"
    app.openapi()["components"]["schemas"]["MaintenanceProblem"]["properties"]["extra"] = {}
    another = way(made())
    assert "changed" not in str([second, maintenance.responses, another.openapi()])
    assert "extra" not in str([maintenance.responses, another.openapi()])


def test_what_a_route_tells_may_be_changed():
    """Who writes into what a route tells, or gives it to a route of their own, changes nothing of another one."""
    theirs, others = route_class(made()), FastAPI()
    router = APIRouter(route_class=made().route_class)
    router.add_api_route("/x", lambda: 1)
    others.include_router(router)
    mine = APIRouter()
    mine.add_api_route("/mine", lambda: 1, responses=router.routes[0].responses)
    told = mine.routes[0].responses[503]
    told["description"] = told["headers"]["Retry-After"]["description"] = "changed"
    told["content"]["text/html"] = "changed"
    assert "changed" not in str([theirs.openapi(), others.openapi(), router.routes[0].responses])


def test_openapi_extra_is_of_one_route():
    """What `openapi_extra` adds to the refusal of one route is added to no other; FastAPI may write it in place."""
    router = APIRouter(route_class=made().route_class)
    extra = {"responses": {"503": {"headers": {"X-Extra": {"schema": {"type": "string"}}}}}}
    router.add_api_route("/x", lambda: 1, openapi_extra=extra)
    router.add_api_route("/y", lambda: 1)
    app = FastAPI()
    app.include_router(router)
    paths = app.openapi()["paths"]
    assert "X-Extra" in str(paths["/x"])
    assert "X-Extra" not in str([paths["/y"], route_class(made()).openapi()])


def test_responses_may_be_changed():
    """Who writes into `maintenance.responses` changes a copy of their own."""
    maintenance = made()
    told = maintenance.responses
    told[503]["description"] = told[503]["headers"]["Retry-After"]["description"] = "changed"
    app = route_class(maintenance)
    assert "changed" not in str([maintenance.responses, app.openapi()])


@pytest.mark.parametrize("code", [503, 529])
def test_responses_for_a_router(code):
    """`maintenance.responses` documents the refusal where it is given, for whoever wants no `describe`."""
    maintenance = made(status_code=code)
    app, router = FastAPI(), APIRouter(responses=maintenance.responses)
    router.add_api_route("/x", lambda: 1)
    app.include_router(router, dependencies=[Depends(maintenance.guard)])
    assert described(app) == FINE | {str(code): "Closed for maintenance"}


@every_way
def test_one_schema_for_all(way):
    """With `describe` the problem is one component, so that a generated client has one type for it."""
    maintenance = made()
    app = way(maintenance)
    app.add_api_route("/y", lambda: 1, dependencies=[Depends(maintenance.guard)])
    maintenance.describe(app)
    for path in ("/x", "/y"):
        content = app.openapi()["paths"][path]["get"]["responses"]["503"]["content"]
        schema = {"schema": {"$ref": "#/components/schemas/MaintenanceProblem"}}
        assert (content["application/json"], content["application/problem+json"]) == (schema, schema)
    (component,) = app.openapi()["components"]["schemas"].values()
    assert component == made().responses[503]["content"]["application/json"]["schema"]


def test_a_schema_of_the_same_name_stays():
    """A schema of the application's own that has the component's name stays, and the problem is told in place."""

    class MaintenanceProblem(BaseModel):
        tool: str

    maintenance = made()
    app = app_level(maintenance, response_model=MaintenanceProblem)
    maintenance.describe(app)
    assert set(app.openapi()["components"]["schemas"]["MaintenanceProblem"]["properties"]) == {"tool"}
    content = app.openapi()["paths"]["/x"]["get"]["responses"]["503"]["content"]
    assert content == maintenance.responses[503]["content"]


def test_nothing_is_added_where_nothing_is_covered():
    """An application without any gate of the object keeps its description as it is."""
    app, maintenance = app_level(made()), made()
    before = json.dumps(app.openapi())
    maintenance.describe(app)
    assert json.dumps(app.openapi()) == before


# Programs that read it


class Item(BaseModel):
    """Something with a name."""

    name: str


def shop(maintenance):
    """Give an app whose operations stand behind all gates."""
    app = FastAPI(title="shop")
    app.add_api_route("/guarded", lambda item: item, methods=["POST"], dependencies=[Depends(maintenance.guard)])
    router = APIRouter(route_class=maintenance.route_class, prefix="/items")

    @router.get("/{number}")
    def show(number: int) -> list[Item]:
        return [Item(name=str(number))]

    @router.post("/{number}")
    def store(number: int, item: Item) -> Item:
        return item

    @app.put("/guarded", dependencies=[Depends(maintenance.guard)])
    @force_maintenance_mode_off
    def always(item: Item) -> Item:
        return item

    router.add_api_route("/", force_maintenance_mode_on(lambda: 1), methods=["DELETE"])
    app.include_router(router)
    maintenance.describe(app)
    return app


def test_the_description_is_valid():
    """The served description is valid OpenAPI, for a validator and for FastAPI's own models."""
    served = TestClient(shop(made())).get("/openapi.json").json()
    assert OpenAPI.model_validate(served).paths
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(served)


CLIENT = """
import sys
sys.path.insert(0, sys.argv[1])
import httpx
from shop import Client
from shop.api.default import show_items_number_get as operation
from shop.models import MaintenanceProblem

answer = {answer!r}
transport = httpx.MockTransport(lambda request: httpx.Response(503, json=answer))
client = Client("http://shop", raise_on_unexpected_status=True, httpx_args={{"transport": transport}})
problem = operation.sync(client=client, number=3)
assert isinstance(problem, MaintenanceProblem), problem
assert (problem.detail, problem.retry_after, problem.applied) == (answer["detail"], answer["retry_after"], False)
assert problem.mode == "full" and problem.until.isoformat() == {until!r}, problem
"""


@pytest.mark.skipif(
    importlib.util.find_spec("openapi_python_client") is None, reason="openapi-python-client is not installed"
)
def test_a_generated_client_has_the_error(tmp_path):
    """A typed client generated from the description reads a refusal into its model."""
    maintenance, until = made(), datetime(2999, 12, 31, tzinfo=UTC)
    anyio.run(partial(maintenance.enable, until=until))
    app = shop(maintenance)
    (tmp_path / "openapi.json").write_text(TestClient(app).get("/openapi.json").text)
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    options = ["--path", "openapi.json", "--output-path", "shop", "--config", "config.yml", "--fail-on-warning"]
    run = partial(subprocess.run, cwd=tmp_path, check=True, timeout=120)
    run([sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", *options])
    source = CLIENT.format(answer=TestClient(app).get("/items/3").json(), until=until.isoformat())
    assert run([sys.executable, "-c", source, str(tmp_path)]).returncode == 0


@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")  # the client of Starlette before 0.47
@pytest.mark.parametrize("closed", [True, False])
def test_no_answer_is_undescribed(closed):
    """Whatever schemathesis makes of the description, no answer is missing there."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi import checks  # noqa: PLC0415 - optional

    maintenance = made()
    app = shop(maintenance)
    codes = set()
    if closed:
        anyio.run(maintenance.enable)
    conform = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]

    @given(case=schemathesis.openapi.from_asgi("/openapi.json", app).as_strategy(), form=st.sampled_from(_FORMS))
    @settings(max_examples=100, deadline=None)
    def explore(case, form):
        codes.add(case.call_and_validate(checks=conform, headers={"Accept": form}).status_code)

    explore()
    gc.collect()
    assert {200, 503} <= codes
