"""schemathesis over the OpenAPI document of a running service: no server error, no status that is not documented."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skumatch.encoder import Encoder
from tests.skumatch.serving import make_gallery

EXAMPLES = 150


@pytest.fixture
def url(patterns: Path, encoder: Encoder, tmp_path: Path) -> Iterator[str]:
    gallery = make_gallery(patterns, encoder, tmp_path / "gallery")
    script = Path(__file__).with_name("serve_process.py")
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, str(script), str(gallery), str(tmp_path / "state"), "0", "reviews=true"]
    process = subprocess.Popen(command, stderr=log)
    try:
        while "listening on " not in (said := (tmp_path / "log").read_text()):
            assert process.poll() is None, said
        yield said.split("listening on ")[1].split()[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
        log.close()


@pytest.mark.slow
def test_nothing_that_can_be_sent_makes_it_fail(url: str) -> None:
    import hypothesis
    import schemathesis
    from schemathesis.specs.openapi import checks

    wanted: list[Any] = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # an Err raises here

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def attempt(case: Any) -> None:
            answer = case.call(timeout=30)
            if answer.status_code == 504 and float((case.query or {}).get("deadline", 10)) < 1:
                return  # it was asked for
            case.validate_response(answer, checks=wanted)

        attempt()
        tried += 1
    assert tried >= 20
