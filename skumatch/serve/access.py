"""The log of the service: one line of JSON per request, and per whatever else it or the server has to say.

A line is ASCII without control characters, so nothing that a client sends can end it early or reach a terminal; API
keys are blanked wherever they turn up. It knows nothing about HTTP beside the names of the facts.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGER = logging.getLogger("skumatch.serve")
LOGGERS = (LOGGER, logging.getLogger("uvicorn"))
_KEY = re.compile(r"(skm_[0-9a-f]{8})_[0-9a-f]+", re.IGNORECASE)
_TEXT = 2000  # characters that one fact of an access line may have, so that a long path fills no disk
_TRACE = 20_000


def line_of(facts: Mapping[str, Any]) -> str:
    """Return ``facts`` as one line of JSON, without its end; what JSON does not know is written as text."""
    try:
        text = json.dumps(facts, default=str, allow_nan=False)
    except ValueError:  # not a number, or infinite
        text = json.dumps(json.loads(json.dumps(facts, default=str), parse_constant=str))
    return _KEY.sub(r"\1_***", text)


def now() -> str:
    """Return the time, UTC, as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(facts: Mapping[str, Any]) -> None:
    """Log one request; as a warning where it ended with a status of 500 or above."""
    level = logging.WARNING if int(facts.get("status", 0)) >= 500 else logging.INFO
    LOGGER.log(level, "%s %s %s", *map(facts.get, ("method", "path", "status")), extra={"facts": facts})


@contextmanager
def to(stream: TextIO) -> Iterator[None]:
    """Write the lines to ``stream``, and nowhere else, while the block runs."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    before = [(logger, logger.level, logger.propagate) for logger in LOGGERS]
    LOGGER.setLevel(logging.INFO)
    for logger in LOGGERS:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class Lines(logging.Formatter):
    """Makes each record a line: the facts of a request, or level and message, and what was raised."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as one line of JSON."""
        facts = getattr(record, "facts", None) or {"level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            facts = {**facts, "error": self.formatException(record.exc_info)}
        return line_of({"time": now(), **{name: _short(name, fact) for name, fact in facts.items()}})


def _short(name: str, fact: Any) -> Any:
    longest = _TRACE if name == "error" else _TEXT
    if not isinstance(fact, str) or len(fact) <= longest:
        return fact
    return f"{fact[: longest // 2]} ... {fact[-longest // 2 :]}"
