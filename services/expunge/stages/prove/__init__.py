"""Prove: statements that are rows become log entries under a published checkpoint, and others vouch for it.

`appender` signs and publishes; `attest` asks witnesses for cosignatures and an authority for the time.
"""

from expunge.stages.prove.appender import Prove, Published
from expunge.stages.prove.attest import Attest
from expunge.stages.prove.recover import recover

__all__ = ["Attest", "Prove", "Published", "recover"]
