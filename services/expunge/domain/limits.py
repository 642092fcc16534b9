"""Limits against hostile or runaway input, together, with units."""

from typing import Final

MESSAGE_BYTES: Final = 1_000_000
"""Largest Kafka message value accepted, bytes."""

LOG_ENTRY_BYTES: Final = 65_535
"""Largest evidence log entry, bytes (C2SP tlog-tiles: entry bundles carry a uint16 length)."""

CHUNK_LEAVES: Final = 1024
"""Leaves in a full chunk: an aligned power-of-two subtree, four full tiles of 256."""

ARTIFACT_ID_BITS: Final = 48
"""Artifact ids fit in 6 bytes, so that one blinded leaf is one SHA-256 block."""

ORDINAL_BLOCK: Final = 65_536
"""Image ordinals are given to a source in blocks of this many (one Roaring container)."""

ORDER_SUBJECTS: Final = 10_000
"""Most subjects in one order by list."""

IMAGES_PER_EVENT: Final = 1_000
"""Most images in one ImagesRegistered event; more go by `expunge catalogue import`."""

TEXT_CHARS: Final = 512
"""Longest free text field in an event, characters."""
