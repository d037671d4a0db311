"""The API against its own OpenAPI document, by schemathesis, on a running node."""

import base64
import os
from collections.abc import Iterator
from typing import Any

import pytest

from switch.cli.cip_world import World
from tests.e2e.cip_threaded import threaded

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from hypothesis import HealthCheck, given, settings  # noqa: E402

EXAMPLES = 200 if os.environ.get("TRONCAL_FUZZ") == "1" else 6
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    values = {
        "cip.auth_rate_per_minute": 100_000, "cip.auth_memory_kib": 8, "cip.auth_time_cost": 1,
        "cip.budget_source_s": 1.0, "cip.budget_auth_s": 20.0,
    }  # fmt: skip
    with threaded(tmp_path_factory.mktemp("cip") / "node", values) as found:
        yield found


@pytest.fixture(scope="module")
def schema(world: World) -> Any:
    return schemathesis.openapi.from_url(f"{world.url}/cip/v1/openapi.json")


CHECKS = (
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
)
OPERATIONS = (
    ("/cip/v1/gateway/payments", "POST"),
    ("/cip/v1/gateway/payments", "GET"),
    ("/cip/v1/gateway/payments/{payment_id}", "GET"),
    ("/cip/v1/gateway/payments/{payment_id}/void", "POST"),
    ("/cip/v1/gateway/payments/{payment_id}/refund", "POST"),
    ("/cip/v1/partial/sessions", "POST"),
    ("/cip/v1/partial/sessions/{session}", "GET"),
    ("/cip/v1/status", "GET"),
)


def test_every_operation_is_tried(schema: Any) -> None:
    found = {(o.ok().path, o.ok().method.upper()) for o in schema.get_all_operations()}
    assert found - {("/cip/v1/openapi.json", "GET")} == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda value: value)
def test_every_answer_is_described(schema: Any, world: World, path: str, method: str) -> None:
    account = world.site.account
    text = f"{account.application}:{account.user}:{account.password}"
    encoded = base64.b64encode(text.encode()).decode()

    @given(case=schema[path][method].as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def tried(case: Any) -> None:
        if "gateway" in path:
            case.headers = {**(case.headers or {}), "Authorization": f"CIP {encoded}"}
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        assert answer.json()["request_id"]

    tried()
