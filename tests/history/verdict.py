"""What is wrong with a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """`line` counts from 1; 0 where it is about the whole run."""

    invariant: str
    code: str
    line: int
    text: str

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line else "whole run"
        return f"{self.invariant} {self.code} ({place}): {self.text}"
