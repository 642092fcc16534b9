"""`expunge keys ...`: draw keys, rotate and revoke them, destroy buckets, and let publishers' and approvers' keys sign
requests."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.console import AsJson, document, say, table, write_new
from expunge.domain.errors import Misconfigured, Rejected

PEOPLE = (("publisher", "publisher"), ("approver", "approver-1"), ("approver", "approver-2"))


class Signs(StrEnum):
    """Roles of keys that sign requests."""

    PUBLISHER = "publisher"
    APPROVER = "approver"


def commands() -> typer.Typer:
    """The group `keys`."""
    group = typer.Typer(help="Keys: draw, register, list, rotate, revoke and destroy them.", no_args_is_help=True)
    _generate(group)
    _register(group)
    _list(group)
    _policy(group)
    _rotate(group)
    _revoke(group)
    _destroy_bucket(group)
    return group


def _generate(group: typer.Typer) -> None:
    @group.command(
        help="Draw signing keys for every role into DIR/signing, a publisher's and two approvers' keys into DIR, and "
        "the policy of their public halves, DIR/trust.json, for auditors."
    )
    def generate(
        directory: Annotated[Path, typer.Option("--dir", help="EXPUNGE_DATA/keys for a deployment")],
        audience: Annotated[str | None, typer.Option("--audience", envvar="EXPUNGE_AUDIENCE")] = None,
        issuer: Annotated[str | None, typer.Option("--issuer", envvar="EXPUNGE_ISSUER")] = None,
        stores: Annotated[list[str] | None, typer.Option("--store", help="a store's name; may be repeated")] = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        if not audience:
            raise Misconfigured("EXPUNGE_AUDIENCE: expected the deployment's name, here or as --audience")
        from expunge.adapters.keys.signers import FileSigners
        from expunge.domain import statement, trust
        from expunge.domain.words import Role

        at = statement.instant(datetime.now(UTC))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        signers = FileSigners.generate(
            directory / "signing", issuer=issuer or audience, origin=f"{audience}/log", stores=stores or [], at=at
        )
        drawn = draw_people(directory)
        approvers = [
            trust.TrustedKey(role=Role.APPROVER, name=name, public=public.to_base64(), valid_from=at)
            for role, name, public in drawn
            if role == Signs.APPROVER
        ]
        (directory / "trust.json").write_bytes(trust.dump(signers.trust(approvers)))
        if as_json:
            document({"dir": str(directory), "keys": {name: public.key_id for _, name, public in drawn}})
            return
        for role, name, public in drawn:
            say(f"{role:<10} {directory / name}.key  key id {public.key_id}")
        say(f"policy     {directory / 'trust.json'}: give it to auditors, some other way than with a bundle")


def draw_people(directory: Path) -> list[tuple[str, str, Any]]:
    """Draw a publisher's key and two approvers' keys into files; role, name and public half of each."""
    from expunge.adapters.keys.files import write_private
    from expunge.domain.dsse import SEED_BYTES, SigningKey

    drawn = []
    for role, name in PEOPLE:
        import secrets

        seed = secrets.token_bytes(SEED_BYTES)
        try:
            write_private(directory / f"{name}.key", seed.hex().encode() + b"\n")
        except FileExistsError:
            raise Rejected("not-empty", f"expected no file {name}.key yet: keys are never overwritten") from None
        drawn.append((role, name, SigningKey.from_seed(seed).public))
    return drawn


def _register(group: typer.Typer) -> None:
    @group.command(help="Let a key sign requests: give its public half (PEM or base64), or the key file itself.")
    def register(
        key: Annotated[Path, typer.Argument(help="public key, or key file as `generate` makes them")],
        role: Annotated[Signs, typer.Option("--role")],
        name: Annotated[str, typer.Option("--name", help="whose it is, for people")],
        sources: Annotated[list[str] | None, typer.Option("--source", help="only these sources")] = None,
        purposes: Annotated[list[str] | None, typer.Option("--purpose", help="only these purposes")] = None,
        types: Annotated[list[str] | None, typer.Option("--type", help="only these request types")] = None,
        quota: Annotated[int | None, typer.Option("--quota", min=1, help="requests a day")] = None,
        *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        public = _public(key)
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.domain.words import Role
        from expunge.readside import register_keys

        limits = {"sources": sources, "purposes": purposes, "types": types, "quota": quota}
        scope = {name: value for name, value in limits.items() if value}
        added = asyncio.run(register_keys(found, [(Role(role), name, public, scope)], at=datetime.now(UTC)))
        if as_json:
            document({"key_id": public.key_id, "role": role, "added": bool(added)})
        else:
            say(f"{role} {name}: {public.key_id}{'' if added else ' was registered already'}")


def _list(group: typer.Typer) -> None:
    @group.command("list", help="The deployment's signing keys, those of before a rotation too.")
    def listed(*, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import deployment

        rows = [_told(one) for one in deployment().signers.listed()]
        if as_json:
            document({"keys": rows})
        else:
            table(tuple(rows[0]) if rows else (), [tuple(one.values()) for one in rows])


def _policy(group: typer.Typer) -> None:
    @group.command(
        help="Write the policy of the deployment's keys, rotated and revoked ones with their windows, for auditors to compare "
        "with their own and to keep."
    )
    def policy(out: Annotated[Path, typer.Option("--out", help="a new file")], *, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import reachable
        from expunge.domain import trust

        found = reachable()
        from expunge.readside import trusted

        made = asyncio.run(trusted(found))
        write_new(out, trust.dump(made))
        if as_json:
            document({"out": str(out), "keys": len(made.keys)})
        else:
            say(f"{out}: {len(made.keys)} keys; give it to auditors some other way than with a bundle")


def _rotate(group: typer.Typer) -> None:
    @group.command(
        help="Draw a new key for a role and log that. The old one counts for --grace hours more: restart the workers that "
        "sign with it, and give auditors the new policy (`expunge keys policy`)."
    )
    def rotate(
        role: Annotated[str, typer.Option("--role")],
        store: Annotated[str | None, typer.Option("--store", help="executors only")] = None,
        grace: Annotated[float, typer.Option("--grace", min=0, help="hours")] = 1.0,
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import reachable
        from expunge.domain.words import Role

        if role not in set(Role):
            raise Rejected("malformed", f"expected a role out of {', '.join(Role)}")
        found = reachable()
        from expunge.keeping import rotate

        hours = timedelta(hours=grace)
        retired, added = asyncio.run(rotate(found, Role(role), store, at=datetime.now(UTC), grace=hours))
        if as_json:
            document({"retired": _told(retired), "added": _told(added)})
        else:
            say(f"{role}: {added.key_id} from now on; {retired.key_id} until {retired.valid_to}")


def _revoke(group: typer.Typer) -> None:
    @group.command(
        help="Nothing that this key signs counts from now on, whatever time it states. Its seed is destroyed."
    )
    def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")], *, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.keeping import revoke

        revoked, added = asyncio.run(revoke(found, key_id, at=datetime.now(UTC)))
        if as_json:
            document({"revoked": _told(revoked), "added": None if added is None else _told(added)})
        else:
            say(f"{revoked.role}: {key_id} revoked at log index {revoked.revoked_at_index}")
            if added is not None:
                say(f"{added.role}: {added.key_id} from now on; restart the workers that sign with it")


def _destroy_bucket(group: typer.Typer) -> None:
    @group.command("destroy-bucket", help="Destroy one day's request keys for good, and log that.")
    def destroy_bucket(
        day: Annotated[str, typer.Argument(metavar="DATE", help="YYYY-MM-DD")], *, as_json: AsJson = False
    ) -> None:
        try:
            bucket = date.fromisoformat(day)
        except ValueError:
            raise Rejected("malformed", "expected a date: YYYY-MM-DD") from None
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.keeping import destroy_bucket

        index = asyncio.run(destroy_bucket(found, bucket, at=datetime.now(UTC)))
        if as_json:
            document({"bucket": day, "log_index": index})
        else:
            say(f"bucket {day}: its key is destroyed, as log entry {index} says")


def _told(key: Any) -> dict[str, Any]:  # noqa: ANN401 - a ListedKey, whose module is not imported yet
    return {
        "role": key.role,
        "store": key.store,
        "key_id": key.key_id,
        "valid_from": key.valid_from,
        "valid_to": key.valid_to,
        "revoked_at_index": key.revoked_at_index,
    }


def _public(path: Path) -> Any:  # noqa: ANN401 - a PublicKey, whose module is not imported yet
    from expunge.cli.keyfile import read_key
    from expunge.domain.dsse import PublicKey

    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected("unreadable", f"expected a key file, got {type(error).__name__}") from error
    if "PUBLIC KEY" in text:
        return PublicKey.from_pem(text)
    # A seed in hex is 64 characters, a public key in base64 is 44: no file is both.
    return read_key(path).public if "PRIVATE" in text or len(text) == 64 else PublicKey.from_base64(text)  # noqa: PLR2004
