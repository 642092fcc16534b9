"""Tombstones of a unit as one flat buffer: a set of strings of one length to whoever wants that, made without an object
per tombstone. The file has one per line; a torn line is none, for its hide did not return.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property

import numpy as np


class Tombstones(AbstractSet[str]):
    """`packed`: ASCII tokens of `width` characters laid end to end; one that is there twice counts once."""

    def __init__(self, packed: bytes, width: int) -> None:
        self.packed = packed
        self.width = width

    @classmethod
    def of(cls, tokens: Iterable[str], width: int) -> Tombstones:
        """Of any tokens; of `Tombstones` themselves."""
        return tokens if isinstance(tokens, Tombstones) else cls("".join(tokens).encode("ascii"), width)

    @classmethod
    def read(cls, lines: bytes, width: int) -> Tombstones:
        """From a file's contents."""
        torn = int(lines[:1] == b"\n")
        count, rest = divmod(len(lines) - torn, width + 1)
        if count and not rest and lines.isascii() and lines.count(b"\n") == count + torn:
            rows = np.frombuffer(lines, np.uint8, offset=torn).reshape(count, width + 1)
            if (rows[:, -1] == ord("\n")).all():
                return cls(rows[:, :-1].tobytes(), width)
        return cls(b"".join([line for line in lines.split(b"\n") if len(line) == width and line.isascii()]), width)

    def lines(self) -> bytearray:
        """What to append to a file: a line each, after whatever may have been left torn."""
        made = bytearray(b"\n") * (1 + len(self.packed) // self.width * (self.width + 1))
        if self.packed:
            rows = np.frombuffer(made, np.uint8, offset=1).reshape(-1, self.width + 1)
            rows[:, :-1] = np.frombuffer(self.packed, np.uint8).reshape(-1, self.width)
        return made

    def without(self, tokens: Iterable[str]) -> Tombstones:
        """Those that are not among `tokens`, ascending."""
        drop = Tombstones.of(tokens, self.width)
        if drop.packed == self.packed:  # all are of one erasure, as they mostly are
            return Tombstones(b"", self.width)
        return Tombstones.of(sorted(self.as_set - drop.as_set), self.width)

    @cached_property
    def as_set(self) -> frozenset[str]:
        """As objects."""
        text, width = self.packed.decode("ascii"), self.width
        return frozenset([text[at : at + width] for at in range(0, len(text), width)])

    def __contains__(self, token: object) -> bool:
        return token in self.as_set

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_set)

    def __len__(self) -> int:
        return len(self.as_set)

    def __hash__(self) -> int:
        return hash(self.as_set)

    @classmethod
    def _from_iterable(cls, tokens: Iterable[str]) -> frozenset[str]:  # type: ignore[override] # what set operations give
        return frozenset(tokens)
