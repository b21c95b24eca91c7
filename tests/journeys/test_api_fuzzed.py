"""The JSON API of a served archive under requests made from its own document, good ones and bad: it answers as it says, and never 500."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests

from archive.access import roles
from archive.access.permissions import FUNCTION, OBJECT
from archive.config import load
from archive.services import setup
from tests.journeys.running import RunningArchive
from tests.services import archives

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[test]'")

EXAMPLES = int(os.environ.get("ARCHIVE_TEST_FUZZ", "2"))
"""Requests of each operation; a long run sets more."""


TOKENS: dict[str, str] = {}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningArchive]:
    """A served archive with boss, who may everything but see."""
    running = RunningArchive(tmp_path_factory.mktemp("fuzzed"))
    config = load(running.config)
    setup.initialise(config, password=archives.PASSWORD)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        named = roles.names(FUNCTION | OBJECT)
        node.accounts.add_role(console, "every-function", named)
        node.accounts.add_user(console, "boss", roles=["every-function"])
        TOKENS["boss"] = node.accounts.create_token(console, owner="boss", permissions=named)["token"]
    running.start("serve")
    try:
        yield running
    finally:
        running.stop()


def test_it_answers_as_its_document_says(archive: RunningArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(archive.ca))  # some checks ask again, without credentials
    told = requests.get(f"{archive.url}/api/openapi.json", timeout=30, verify=str(archive.ca))
    schema = schemathesis.openapi.from_dict(told.json())
    headers = {"Authorization": f"Bearer {TOKENS['boss']}"}
    answered: Counter[int] = Counter()
    walked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        walked += 1

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def asked(case: Any) -> None:
            answer = case.call(base_url=archive.url, headers=headers, verify=str(archive.ca))
            answered[answer.status_code] += 1
            # What a document can say of a name, a reason or a date is less than what makes it right.
            case.validate_response(answer, headers=headers, excluded_checks=[positive_data_acceptance])

        asked()
    assert walked > 50
    assert answered.keys() <= {200, 201, 204, 400, 403, 404, 409}
    assert answered[200] > 20
    assert '"ERROR"' not in archive.log()
