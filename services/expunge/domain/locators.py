"""Locators of many artifacts as one flat buffer: what travels from the database to the sealed file to a store's calls.

A sequence of strings to whoever wants that; who works on millions takes `data` and `bounds` instead, and makes no object
per artifact. Needs numpy. Shapes: `n` locators; `bounds` (n + 1) are byte positions in `data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from expunge.domain.errors import Tampered

I64 = NDArray[np.int64]

_HEAD: Final = 4
_CONTINUES: Final = 0x80
"""Top bits of the bytes that begin no character of UTF-8, under the mask `_TOP`."""
_TOP: Final = 0xC0
_ZERO: Final = ord("0")
_DIGITS: Final = 19
"""Of the largest number of 63 bits."""
_LARGEST: Final = np.uint64(2**63 - 1)
_BLOCK: Final = 1 << 16
"""Locators read as numbers at once: bounds the memory, and stays in the cache."""


class Locators(Sequence[str]):
    """`n` strings laid end to end: string i is `data[bounds[i] : bounds[i + 1]]` in UTF-8. Not changed once made.

    A slice shares `data`, so the first bound need not be zero.
    """

    __slots__ = ("bounds", "data")

    def __init__(self, data: bytes, bounds: I64) -> None:
        self.data = data
        self.bounds = bounds

    @classmethod
    def of(cls, strings: Sequence[str]) -> Locators:
        """Of any strings; of `Locators` themselves. Raises `UnicodeEncodeError` for lone surrogates."""
        if isinstance(strings, Locators):
            return strings
        encoded = [one.encode() for one in strings]
        return cls.of_lengths(b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded)))

    @classmethod
    def of_lengths(cls, data: bytes, lengths: NDArray[np.generic]) -> Locators:
        """From the length of each, in bytes."""
        bounds = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=bounds[1:])
        return cls(data, bounds)

    @classmethod
    def joined(cls, parts: Sequence[Locators]) -> Locators:
        """Laid end to end."""
        return parts[0] if len(parts) == 1 else cls.gathered(sum(map(len, parts)), parts)

    @classmethod
    def gathered(cls, count: int, parts: Iterable[Locators]) -> Locators:
        """Laid end to end, one after the other: of `parts`, which have `count` in all, only one has to be there."""
        bounds = np.zeros(count + 1, np.int64)
        data, at = bytearray(), 0
        for part in parts:
            np.add(part.bounds[1:], len(data) - part.bounds[0], out=bounds[at + 1 : at + 1 + len(part)])
            data += part.flat
            at += len(part)
        return cls(bytes(data), bounds)

    @classmethod
    def unpack(cls, packed: bytes) -> Locators:
        """From `scopefile.pack_strings`: count, each one's length in code points (all u32), then UTF-8. Raises `Tampered`
        on anything else."""
        count = int.from_bytes(packed[:_HEAD], "little")
        start = _HEAD * (1 + count)
        if len(packed) < start:
            raise Tampered("columns", f"expected {start} bytes or more, got {len(packed)}")
        made = cls.of_lengths(packed[start:], np.frombuffer(packed, "<u4", count, _HEAD))
        if not made.data.isascii():
            made = cls(made.data, _byte_bounds(made.data, made.bounds))
        if made.bounds[-1] != len(made.data):
            raise Tampered("columns", f"expected {made.bounds[-1]} bytes of strings, got {len(made.data)}")
        return made

    def pack(self) -> bytes:
        """The inverse of `unpack`."""
        flat = self.flat
        lengths = self.lengths
        if not flat.isascii():
            begins = np.concatenate(([0], np.cumsum(_begins(flat))))
            lengths = np.diff(begins[self.bounds - self.bounds[0]])
        return len(self).to_bytes(_HEAD, "little") + lengths.astype("<u4").tobytes() + flat

    @property
    def flat(self) -> bytes:
        """The bytes of these strings alone."""
        return self.data[self.bounds[0] : self.bounds[-1]]

    @property
    def lengths(self) -> I64:
        """(n) in bytes."""
        return np.diff(self.bounds)

    def take(self, at: NDArray[np.integer]) -> Locators:
        """Those at positions `at`, in that order."""
        lengths = self.lengths[at]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        shift = np.repeat(self.bounds[:-1][at] - (ends - lengths), lengths)
        chosen = np.frombuffer(self.data, np.uint8)[shift + np.arange(total)]
        return Locators.of_lengths(chosen.tobytes(), lengths)

    def strings(self) -> list[str]:
        """All of them, as objects."""
        flat, lengths = self.flat, self.lengths
        if not flat.isascii():
            return [flat[first:end].decode() for first, end in pairwise((self.bounds - self.bounds[0]).tolist())]
        if len(lengths) > 1 and lengths[0] and (lengths == lengths[0]).all() and b"\0" not in flat:
            # File names mostly have one length: cut in C.
            rows = np.zeros((len(lengths), int(lengths[0]) + 1), np.uint8)
            rows[:, :-1] = np.frombuffer(flat, np.uint8).reshape(len(lengths), -1)
            return rows.tobytes()[:-1].decode().split("\0")
        text = flat.decode()
        return [text[first:end] for first, end in pairwise((self.bounds - self.bounds[0]).tolist())]

    def decimals(self) -> I64 | None:
        """(n) the numbers that they are in decimal, or None unless all are in [0, 2**63), without leading zeros or any
        other sign."""
        found = np.zeros(len(self), np.int64)
        for first in range(0, len(self), _BLOCK):
            some = _decimals(self[first : first + _BLOCK])
            if some is None:
                return None
            found[first : first + _BLOCK] = some
        return found

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Locators: ...
    def __getitem__(self, at: int | slice) -> str | Locators:
        if isinstance(at, slice):
            first, end, step = at.indices(len(self))
            if step != 1:
                return self.take(np.arange(first, end, step))
            return Locators(self.data, self.bounds[first : max(first, end) + 1])
        place = range(len(self))[at]
        return self.data[self.bounds[place] : self.bounds[place + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self.strings())

    def __eq__(self, other: object) -> bool:
        """As a list of strings is equal to another sequence of strings."""
        if isinstance(other, Locators):
            return self.flat == other.flat and np.array_equal(self.lengths, other.lengths)
        return isinstance(other, list | tuple) and self.strings() == list(other)

    __hash__ = None  # type: ignore[assignment] # as a list has none

    def __repr__(self) -> str:
        return f"Locators({len(self)})"  # what they say is personal data


def _decimals(some: Locators) -> I64 | None:
    lengths, data = some.lengths, np.frombuffer(some.data, np.uint8)
    if lengths.min() < 1 or lengths.max() > _DIGITS:
        return None
    first = data[some.bounds[:-1]]
    if ((first == _ZERO) & (lengths > 1)).any():
        return None
    numbers = np.zeros(len(lengths), np.uint64)
    for place in range(int(lengths.max())):
        mine = np.flatnonzero(lengths > place)
        digits = data[some.bounds[mine] + place] - np.uint8(_ZERO)  # below the digits it wraps, to above them
        if (digits > 9).any():  # noqa: PLR2004 - the largest digit
            return None
        numbers[mine] = numbers[mine] * np.uint64(10) + digits
    return None if (numbers > _LARGEST).any() else numbers.astype(np.int64)


def _begins(data: bytes) -> NDArray[np.bool_]:
    """Which bytes of UTF-8 begin a character."""
    begins: NDArray[np.bool_] = (np.frombuffer(data, np.uint8) & _TOP) != _CONTINUES
    return begins


def _byte_bounds(data: bytes, points: I64) -> I64:
    """Byte positions of code point positions. Raises `Tampered` unless `data` is UTF-8 of just so many code points."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise Tampered("columns", "expected UTF-8") from error
    places = np.append(np.flatnonzero(_begins(data)), len(data))
    if points[-1] != len(places) - 1:
        raise Tampered("columns", f"expected {points[-1]} characters, got {len(places) - 1}")
    return places[points]
