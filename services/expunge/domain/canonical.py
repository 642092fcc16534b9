"""Canonical encodings: RFC 8785 JSON out, strict I-JSON (RFC 7493) in, and RFC 4648 base64 with one spelling per value.

Bytes that were signed are never re-encoded to check them; canonical output only makes the same values the same bytes.
"""

from __future__ import annotations

import binascii
import json
import math
from typing import Any, Final, NoReturn, TypeAlias

import rfc8785

from expunge.domain.errors import Rejected

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

JSON_DEPTH: Final = 32
"""Most arrays and objects around one value that `loads` accepts."""

_INTEGER_MAX: Final = 2**53 - 1
_INTEGER_CHARS: Final = len(str(-_INTEGER_MAX))


def dumps(value: object) -> bytes:
    """RFC 8785 bytes of dicts, lists, tuples, strings, numbers, booleans and None.

    Raises `ValueError` for what has no such form: NaN, infinities, integers beyond 2**53 - 1, lone surrogates, keys
    that are not strings, other types.
    """
    anything: Any = value  # rfc8785 checks at run time; its type does not admit dict[str, object]
    try:
        if _is_plain(anything):
            return _ENCODER.encode(anything).encode()
        return rfc8785.dumps(anything)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError(f"expected a value with an RFC 8785 form: {error}") from error


def loads(data: bytes) -> Json:
    """Parse one JSON text (UTF-8, no byte order mark). The caller bounds its size.

    Raises `Rejected("malformed")` on duplicate keys, NaN and infinities, integers beyond 2**53 - 1, lone surrogates,
    nesting over `JSON_DEPTH`, and whatever is not JSON.
    """
    try:
        value: Json = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed", f"expected one JSON text in UTF-8, got {type(error).__name__}") from error
    # Only bytes that could nest too deep, or escape a surrogate, pay for a walk.
    if data.count(b"[") + data.count(b"{") > JSON_DEPTH or b"\\u" in data:
        _check(value)
    return value


def base64_encode(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return binascii.b2a_base64(data, newline=False).decode()


def base64_decode(text: str) -> bytes:
    """The inverse of `base64_encode`. Raises `Rejected("malformed")` on any other spelling of the same bytes."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise Rejected("malformed", "expected standard base64") from error
    # Strict decoding leaves open what only the last four characters show: stray padding and stray bits.
    if base64_encode(data[-(len(data) % 3 or 3) :]) != text[-4:]:
        raise Rejected("malformed", "expected canonical base64, got stray bits or padding")
    return data


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("expected unique keys")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _INTEGER_CHARS else _INTEGER_MAX + 1
    if abs(value) > _INTEGER_MAX:
        raise ValueError("expected an integer that fits a double")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        return _constant(text)
    return value


def _is_plain(value: object) -> bool:
    """Whether the standard library's encoder gives RFC 8785 bytes: no floats, small integers, ASCII keys. Six times as
    fast, and what nearly all of our values are."""
    pending: list[Any] = [value]
    for one in pending:
        kind = type(one)
        if kind is dict:
            if not all(type(key) is str and key.isascii() for key in one):
                return False
            pending.extend(one.values())
        elif kind in {list, tuple}:
            pending.extend(one)
        elif isinstance(one, str) or one is None or kind is bool:
            continue
        elif kind is not int or not -_INTEGER_MAX <= one <= _INTEGER_MAX:
            return False
    return True


def _constant(_text: str) -> NoReturn:
    raise ValueError("expected a finite number")


def _check(value: Json) -> None:
    level = [value]
    for _ in range(JSON_DEPTH + 1):
        inner: list[Json] = []
        for one in level:
            if isinstance(one, str):
                _check_text(one)
            elif isinstance(one, dict):
                inner.extend(one)
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        if not inner:
            return
        level = inner
    raise Rejected("malformed", f"expected at most {JSON_DEPTH} nested values")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Rejected("malformed", "expected text without lone surrogates") from error


_ENCODER: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
