"""`expunge catalogue import`: the bulk load, with progress on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from expunge.domain.words import Role
from expunge.stages.register import Registrar
from expunge.stages.register.bulk import import_files
from expunge.wiring import Deployment, now


async def import_catalogue(deployment: Deployment, files: Sequence[Path], *, quiet: bool) -> dict[str, Any]:
    """Load all files or none. Raises `ImportRefused`."""
    registrar = Registrar(
        keys=deployment.keys,
        signer=deployment.signers.signer(Role.REGISTER),
        suppression_key=deployment.journal.key,
    )
    await deployment.ledger.open()
    try:
        with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
            task = progress.add_task("rows", total=None)
            loaded = await import_files(
                deployment.ledger,
                registrar,
                files,
                at=now(),
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    finally:
        await deployment.ledger.close()
    return {
        "images": loaded.images,
        "artifacts": loaded.artifacts,
        "left_out": loaded.codes,
        "repeated": loaded.repeated,
    }
