"""What the server says of itself is true: requests made up from its OpenAPI description get the answers described there."""

import itertools
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from tests.soak import record

from tunesmith.serve.limits import Limits

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, negative_data_rejection,
]  # fmt: skip

CLASHING = ("stream_options", "max_completion_tokens", "tools", "tool_choice")
TUNED = {"model": "tuned", "max_tokens": 4, "temperature": 1.0}
ANSWERED = {
    "POST /v1/chat/completions": {**TUNED, "messages": [{"role": "user", "content": "The wind"}], "logprobs": True},
    "POST /v1/completions": {**TUNED, "prompt": "The wind"},
}
"""What half of the valid requests are given, so that they get as far as an answer, and what may not stand beside it."""


@pytest.fixture
def live(serve, session):
    with serve(session, Limits(answer=8, usual=4)) as live:
        yield live


def check(live, examples):
    """Valid and invalid requests for every operation: how many came, and how many of them the model answered."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    asked, count = set(), itertools.count()
    for operation in schema.get_all_operations():
        operation = operation.ok()
        modes = schemathesis.GenerationMode if operation.body else [schemathesis.GenerationMode.POSITIVE]
        for mode in modes:  # where there is nothing to get wrong, nothing wrong can be made up
            strategy = operation.as_strategy(generation_mode=mode)
            phases = (Phase.explicit, Phase.generate)

            @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), phases=phases, database=None)
            @given(case=strategy)
            def holds(case):
                valid = case.meta is None or case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE
                if valid and isinstance(case.body, dict) and next(count) % 2:
                    case.body = {key: value for key, value in case.body.items() if key not in CLASHING}
                    case.body |= ANSWERED[case.operation.label]
                case.call_and_validate(checks=CHECKS)

            holds()
            asked.add((operation.label, mode.name))
    assert {(label, "NEGATIVE") for label in ANSWERED} <= asked
    assert len(asked) >= 8
    metrics = live.service.metrics
    assert all(metrics.requests[label.removeprefix("POST "), "200"] for label in ANSWERED)
    return {"requests": sum(metrics.requests.values()), "answered": sum(metrics.answers.values())}


def test_requests_made_up_from_the_description_find_no_fault(live):
    check(live, 10)


@pytest.mark.soak
def test_many_requests_made_up_from_the_description_find_no_fault(live):
    record("requests made up from the OpenAPI description", **check(live, int(os.environ.get("SOAK_EXAMPLES", "1000"))))
