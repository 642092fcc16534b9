"""SHA-256 of many short equal pieces by libcrypto, called from code that numba compiles: no call of Python per hash.

Needs the extra `fast`; only `hashing` imports it, by name, so that nothing imports numpy that need not. Whatever is
missing is an exception at import; `hashing` then goes on without. The compiled code is kept beside this file where that
is writable, or in the user's cache.
"""

from __future__ import annotations

import _hashlib
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Final, TypeAlias

import llvmlite.binding as llvm
import numba
import numpy as np
from numpy.typing import NDArray

_Bytes: TypeAlias = NDArray[np.uint8]

_CONTEXT_BYTES: Final = 256
"""SHA256_CTX has 112."""

# The library that hashlib itself uses; a Python with OpenSSL built in has none of its own, the system may.
with suppress(RuntimeError):
    llvm.load_library_permanently(getattr(_hashlib, "__file__", "libcrypto.so.3"))
if not all(llvm.address_of_symbol(name) for name in ("SHA256_Init", "SHA256_Update", "SHA256_Final")):
    raise ImportError("expected SHA256_Init, SHA256_Update and SHA256_Final in libcrypto")

# By name and not by address, so that what is compiled can be kept. Not `SHA256`: OpenSSL 3 looks the algorithm up at
# each call of that one, and it is four times slower.
_address = numba.types.uintp
_init = numba.types.ExternalFunction("SHA256_Init", numba.types.int32(_address))
_update = numba.types.ExternalFunction("SHA256_Update", numba.types.int32(_address, _address, _address))
_final = numba.types.ExternalFunction("SHA256_Final", numba.types.int32(_address, _address))


def _hash(data: _Bytes, size: int, prefix: int, hashes: _Bytes) -> None:
    context = np.empty(_CONTEXT_BYTES // 8, np.uint64)
    piece = np.empty(size + 1, np.uint8)
    piece[0] = prefix
    at, source, target = context.ctypes.data, piece.ctypes.data, hashes.ctypes.data
    for number in range(len(hashes) // 32):
        first = number * size
        for offset in range(size):
            piece[offset + 1] = data[first + offset]
        _init(at)
        _update(at, source, size + 1)
        _final(target + number * 32, at)


def _hash_after(head: _Bytes, data: _Bytes, size: int, hashes: _Bytes) -> None:
    begun = np.empty(_CONTEXT_BYTES // 8, np.uint64)
    context = np.empty(_CONTEXT_BYTES // 8, np.uint64)
    _init(begun.ctypes.data)
    _update(begun.ctypes.data, head.ctypes.data, len(head))
    at, source, target = context.ctypes.data, data.ctypes.data, hashes.ctypes.data
    for number in range(len(hashes) // 32):
        for word in range(len(context)):
            context[word] = begun[word]
        _update(at, source + number * size, size)
        _final(target + number * 32, at)


def _compiled(function: Callable[..., None], *given: object) -> Callable[..., None]:
    signature = numba.types.void(*given)
    try:
        return numba.njit([signature], cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # nowhere to keep it
        return numba.njit([signature], nogil=True)(function)  # type: ignore[no-any-return]


_GIVEN: Final = numba.types.Array(numba.types.uint8, 1, "C", readonly=True)
_run = _compiled(_hash, _GIVEN, numba.types.intp, numba.types.uint8, _GIVEN)
_run_after = _compiled(_hash_after, _GIVEN, _GIVEN, numba.types.intp, _GIVEN)


def hashes(prefix: int, data: bytes | bytearray | memoryview, size: int) -> bytes:
    """SHA-256(prefix || piece) of each `size` bytes of `data`, 32 bytes each."""
    made = bytes(len(data) // size * 32)
    if made:
        # Written in place, as C code may do with a bytes object that nobody else has yet: a copy would cost a tenth.
        _run(_read_only(data), size, prefix, np.frombuffer(made, np.uint8))
    return made


def hashes_after(head: bytes, data: bytes | bytearray | memoryview, size: int) -> bytes:
    """SHA-256(head || piece) of each `size` bytes of `data`, 32 bytes each; `head` is hashed once."""
    made = bytes(len(data) // size * 32)
    if made:
        _run_after(_read_only(head), _read_only(data), size, np.frombuffer(made, np.uint8))
    return made


def _read_only(data: bytes | bytearray | memoryview) -> _Bytes:
    pieces = np.frombuffer(data, np.uint8)
    pieces.flags.writeable = False
    return pieces


def _check() -> None:
    for size in (1, 54, 64, 200):
        data = bytes(range(256)) * 3
        data = data[: len(data) // size * size]
        expected = [sha256(b"\x01" + data[at : at + size]).digest() for at in range(0, len(data), size)]
        if hashes(1, data, size) != b"".join(expected):
            raise ImportError("expected the hashes of hashlib, got others")
        if hashes_after(b"\x01" * 65, data, size) != b"".join(
            sha256(b"\x01" * 65 + data[at : at + size]).digest() for at in range(0, len(data), size)
        ):
            raise ImportError("expected the hashes of hashlib, got others")


_check()
