"""Every error Expunge raises, in families by what the caller does about it.

Messages state what was expected and what came, and never hold a subject, a locator or a digest of a photo.
"""

from __future__ import annotations


class ExpungeError(Exception):
    """Something in Expunge failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class Retryable(ExpungeError):  # noqa: N818 - families are named for what the caller does, not for being errors
    """A passing fault: the same call may succeed later."""


class Unpublished(Retryable):
    """It is done, and no published checkpoint covers the statement of it yet: in a moment one will."""


class Overloaded(Retryable):
    """A store took nothing, though asked over and over and ever more slowly: leave it alone for a while."""


class Rejected(ExpungeError):  # noqa: N818 - see Retryable
    """The input can never succeed as it is; `code` is a stable reason code (lower-case words joined by `-`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tampered(ExpungeError):  # noqa: N818 - see Retryable
    """Evidence does not verify: stop and raise the alarm; `where` names the first thing that is wrong."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class FencedOff(ExpungeError):  # noqa: N818 - see Retryable
    """A newer holder of the lease has taken over: this worker must change nothing more."""


class IllegalTransition(ExpungeError):  # noqa: N818 - see Retryable
    """A bug of ours: an event was applied to a state that cannot take it."""


class Misconfigured(ExpungeError):  # noqa: N818 - see Retryable
    """A setting is missing or wrong; the message names the variable."""
