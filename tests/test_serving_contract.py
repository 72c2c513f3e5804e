"""The OpenAPI document against the server, by schemathesis: no 5xx, no answer that it does not tell of."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Server, make_run

EXAMPLES = 10  # of each operation
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    found = Server(make_run(folder), "--store", f"sqlite:///{folder}/store.sqlite")
    yield found
    found.stop()


def test_every_answer_is_documented(server):
    schema, tried = schemathesis.openapi.from_url(f"{server.url}/openapi.json"), []
    for operation in schema.get_all_operations():

        @settings(max_examples=EXAMPLES, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.ok().as_strategy())
        def check(case):
            case.call_and_validate(checks=CHECKS)

        check()
        tried.append(operation.ok().label)
    assert len(tried) > 20, tried


def test_the_document_is_openapi_31(server):
    _, document = server.call("GET", "/openapi.json")
    assert document["openapi"].startswith("3.1") and len(document["paths"]) > 15
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"] and operation.get("description"), (method, path)
            assert {"401", "422", "429", "503"} <= set(operation["responses"]), (method, path)
