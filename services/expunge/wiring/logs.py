"""Logging of every process: JSON lines on stderr, and only keys that are known to hold nothing personal.

An event is a fixed sentence of ours; its values are codes, counts, names that the deployment gives (workers, topics,
stores, witnesses) and ids that we drew. `trace` is the W3C trace id of the messages being handled, when they have one.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, WrappedLogger

KEYS: Final = frozenset(
    {
        *("event", "level", "timestamp", "trace"),
        *(
            "worker",
            "topic",
            "store",
            "step",
            "stage",
            "witness",
            "kind",
            "action",
            "code",
            "reason",
            "where",
            "outcome",
        ),
        *("count", "counts", "units", "differing", "log_size", "seconds"),
        *("sweep", "task", "request"),
        # The read API's: a route's template, an id of ours of a token, the type of what was raised.
        *("route", "method", "status", "ms", "token", "error"),
        "variable",
    }
)
"""Every key that a line may have. Extending it is a decision about privacy: no key for what came from outside."""

VALUE_CHARS: Final = 300
"""Longest value: a code, an id or a sentence of ours is shorter."""


def only_known(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Drop keys that are not on the list (`dropped` counts them) and values that are no plain scalar or list of them."""
    kept = {name: value for name, value in fields.items() if name in KEYS and _plain(value)}
    dropped = len(fields) - len(kept)
    return kept | {"dropped": dropped} if dropped else kept


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(one) for one in value)
    return (
        value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= VALUE_CHARS)
    )


def configure_logging(level: str) -> None:
    """Set up structlog for this process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            only_known,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping().get(level.upper(), 20)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
