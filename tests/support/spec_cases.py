"""`/api/spec` as schemathesis asks by it, and what has to be there before a request can succeed."""

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import requests
import schemathesis
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from undercroft.api.openapi import openapi, shown_path
from undercroft.api.routing import COMPONENT, Route
from undercroft.config import Settings
from undercroft.node import Node

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

# OpenAPI knows no parameter with slashes: what is asked in the place of those that are more than a name.
SHAPES = {"instance_kind_hash": ("ac/{hash}", "cas/{hash}", "{instance}/ac/{hash}", "{instance}/{hash}")}
NO_KEYS = ("{instance}/{hash}", "/{folder}/{key}", "/{folder}/{folder_2}/{key}")
"""Shapes that no tool has, so that nothing can be stored there."""
ANY_SHAPE = ("{key}", "{folder}/{key}", "{folder}/{folder_2}/{key}")
HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def in_shapes(document: dict[str, Any], routes: Sequence[Route]) -> dict[str, Any]:
    """The document with each path of several components in shapes that OpenAPI can describe."""
    paths = dict(document["paths"])
    for path in {shown_path(route) for route in routes if "...}" in route.path}:
        item = paths.pop(path)
        above, _, last = path.rpartition("/")
        for shape in SHAPES.get(last.strip("{}"), ANY_SHAPE):
            paths[f"{above}/{shape}"] = {
                method: _in_shape(operation, last.strip("{}"), shape) for method, operation in item.items()
            }
    return document | {"paths": paths}


def _in_shape(operation: dict[str, Any], replaced: str, shape: str) -> dict[str, Any]:
    parameters = [one for one in operation["parameters"] if (one["name"], one["in"]) != (replaced, "path")]
    for name in re.findall(r"{(\w+)}", shape):
        schema = HASH if name == "hash" else COMPONENT
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    return operation | {"parameters": parameters, "operationId": f"{operation['operationId']} {shape}"}


Operation: TypeAlias = APIOperation[Any, Any, Any, Any]

ROUTES = Node(Settings(data_dir=Path("never made")))._routes()
DOCUMENT = openapi(ROUTES)
SCHEMA = schemathesis.openapi.from_dict(in_shapes(DOCUMENT, ROUTES))
# Sorted, because every process of a test run must have the same order.
OPERATIONS = sorted(
    (found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)), key=lambda one: one.label
)


def operations_with(settings: Settings) -> list[Operation]:
    """The operations of a node with these settings: some ask for a credential only where tokens are."""
    routes = Node(settings)._routes()
    found = schemathesis.openapi.from_dict(in_shapes(openapi(routes), routes)).get_all_operations()
    return [one.ok() for one in found if isinstance(one, Ok)]


def bring_about(case: Case[Any], session: requests.Session, url: str) -> None:
    """Makes it so that the request can succeed: stores what it asks for, begins what it goes on with."""
    if case.operation.path.endswith("/cas/{hash}"):
        case.path_parameters["hash"] = sha256(b"blob").hexdigest()
    elif case.operation.path == "/page/{name}":
        case.path_parameters["name"] = "page.css"
    asked = case.as_transport_kwargs(base_url=url)
    where, query, path = asked["url"], asked["params"] or {}, case.operation.path
    if path.startswith("/api/cache/module/"):
        _bring_about_module(case, session, f"{url}/api/cache/module", dict(query))
    elif path == "/api/cache/keyvalue/{cas_id}":
        body = {"cas_id": case.path_parameters["cas_id"], "entries": [{"value": "v"}]}
        session.put(f"{url}/api/cache/keyvalue", params=query, json=body, timeout=20)
    elif path == "/api/cache/clean" and case.method == "GET":
        session.delete(where, params=query, timeout=20)
    elif path.endswith("/cas/{hash}") and case.method == "PUT":
        case.body = b"blob"
    elif case.method in ("GET", "HEAD", "DELETE"):
        for method in {"PUT", "POST"} & {method.upper() for method in SCHEMA[path]}:
            session.request(method, where, params=query, data=b"blob", timeout=20)


def _bring_about_module(case: Case[Any], session: requests.Session, url: str, query: dict[str, Any]) -> None:
    if case.operation.path.endswith("/start"):
        return
    named = {"hash": uuid4().hex, "name": "n"} | query
    begun = session.post(f"{url}/start", params=named, timeout=20).json().get("upload_id")
    going_on = {**query, "upload_id": begun, "part_number": 1}
    if not case.operation.path.endswith("/part"):
        session.post(f"{url}/part", params=going_on, data=b"part", timeout=20)
    if "upload_id" in case.query:
        case.query["upload_id"] = begun
        if case.operation.path.endswith("/complete"):
            case.body = {"parts": [1]}
    else:
        session.post(f"{url}/complete", params=going_on, json={"parts": [1]}, timeout=20)
