"""W3C trace context: one line that says which trace a message belongs to, carried and never interpreted.

Spec: https://www.w3.org/TR/trace-context/ and the CloudEvents extension `traceparent`. Version 00 only; what does not fit
is dropped, as the spec asks. A trace id is random: nothing about a person may be in it, and nothing is derived from it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

_FORM: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def new() -> str:
    """A traceparent that starts a trace, sampled."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def accepted(text: str | None) -> str | None:
    """The traceparent, if it is one."""
    return text if text is not None and _FORM.fullmatch(text) else None


def trace_id(traceparent: str) -> str:
    """Its trace id, 32 hex digits: what log lines carry."""
    return traceparent[3:35]


def child(traceparent: str, of: str) -> str:
    """The traceparent of a message that follows: same trace, a span id that is a function of the message's id `of`, so
    that a repeat after a crash has the same bytes."""
    span = hashlib.sha256(f"{traceparent} {of}".encode()).hexdigest()[:16]
    return f"{traceparent[:36]}{span}{traceparent[52:]}"
