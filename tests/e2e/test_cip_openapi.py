"""The API against its own OpenAPI document, by schemathesis, on a running node."""

import base64
import os
from collections.abc import Iterator
from typing import Any

import pytest

from switch.cli.cip_world import World
from tests.e2e.cip_threaded import threaded

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from hypothesis import HealthCheck, settings  # noqa: E402

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
def document(world: World) -> Any:
    return schemathesis.openapi.from_url(f"{world.url}/cip/v1/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_every_answer_is_described(case: Any, world: World) -> None:
    account = world.site.account
    text = f"{account.application}:{account.user}:{account.password}"
    if "gateway" in case.path:
        encoded = base64.b64encode(text.encode()).decode()
        case.headers["Authorization"] = f"CIP {encoded}"
    answer = case.call()
    case.validate_response(answer, checks=CHECKS)
    assert answer.json()["request_id"] or answer.status_code == 200


CHECKS = (
    schemathesis.checks.not_a_server_error,
    schemathesis.specs.openapi.checks.status_code_conformance,
    schemathesis.specs.openapi.checks.content_type_conformance,
    schemathesis.specs.openapi.checks.response_schema_conformance,
)
