"""RFC 3161 time stamps: whether a token over some bytes is good, and the time in it. `rfc3161-client` does the work where
it is installed (extras `worker` and `timestamp`); without it a token cannot be checked, and is never taken on trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509

from expunge.domain.errors import Tampered


class NotInstalled(Tampered):
    """A time stamp cannot be checked here."""


def time_of(token: bytes, stamped: bytes, authorities: Sequence[str], where: str) -> datetime:
    """When an authority stamped `stamped`. `token`: a TimeStampResp (DER); `authorities`: pinned certificates (PEM) that
    the signer is, or leads to. Raises `Tampered(where)`; `NotInstalled` when there is no library to check it with."""
    try:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ModuleNotFoundError as error:
        raise NotInstalled(where, "cannot check a time stamp: rfc3161-client is not installed") from error
    roots = [x509.load_pem_x509_certificate(pem.encode()) for pem in authorities]
    try:
        response = decode_timestamp_response(token)
        VerifierBuilder(roots=roots).build().verify_message(response, stamped)
        at = response.tst_info.gen_time
    except (VerificationError, ValueError) as error:
        raise Tampered(where, f"expected a good time stamp by a pinned authority: {error}") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)
