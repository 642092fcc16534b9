"""Stage register: what products say about their data becomes catalogue rows under logged batch roots.

`handler` takes events, `bulk` takes files; both load through `registrar`. `models` takes snapshots and models.
"""

from expunge.stages.register.handler import Register
from expunge.stages.register.registrar import Load, Offer, OfferedArtifact, Registrar

__all__ = ["Load", "Offer", "OfferedArtifact", "Register", "Registrar"]
