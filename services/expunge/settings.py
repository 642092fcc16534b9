"""All settings, read once from the environment (`EXPUNGE_...`), passed down as plain values.

A wrong or unknown variable stops start-up and is named.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from expunge import crashing
from expunge.domain.errors import Misconfigured, Rejected
from expunge.domain.note import NoteKey, SignatureType
from expunge.domain.policy import Policy
from expunge.domain.request import Audience

PREFIX = "EXPUNGE_"


class WitnessSetting(BaseModel):
    """One witness: its submission prefix, and the C2SP verifier key that its operator told us."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(pattern=r"^https?://")]
    vkey: str

    @property
    def key(self) -> NoteKey:
        """The key."""
        return NoteKey.parse(self.vkey)

    @field_validator("vkey")
    @classmethod
    def _cosigns(cls, text: str) -> str:
        try:
            key = NoteKey.parse(text)
        except Rejected as error:
            raise ValueError(str(error)) from error
        if key.type is not SignatureType.COSIGNATURE:
            raise ValueError("expected the verifier key of a witness, got a log's")
        return text


class Settings(BaseSettings):
    """One deployment's settings. Paths are directories of this worker's machine or mounts."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    database: str = Field(description="PostgreSQL URI")
    kafka: str = Field(description="Kafka bootstrap servers, host:port[,host:port...]")
    data: Path = Field(description="keys, sealed files, evidence log, journal and worker state live below here")
    audience: Audience = Field(description="name of this deployment, which every request must be addressed to")
    issuer: str = Field(default="", description="legal name on certificates; the audience when empty")
    stores: Mapping[str, str] = Field(default_factory=dict, description="JSON object: store name to URL")
    instance: str = Field(default="0", description="unique and stable per replica of one worker")
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, description="0: any free port")
    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, description="0: any free port")
    log_level: str = "info"
    sweep_requests: Annotated[int, Field(ge=1, le=65536)] = 1024
    sweep_window_ms: Annotated[int, Field(ge=0, le=60_000)] = 20
    approval_images: Annotated[int, Field(ge=1)] = 5_000
    approval_days: Annotated[int, Field(ge=1)] = 7
    breaker_artifacts: Annotated[int, Field(ge=1)] = Field(
        default=1_000_000, description="most artifacts of a store, and images of a source, erased in an hour unapproved"
    )
    breaker_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="most of a source's images erased in an hour unapproved, as a share of all it has"
    )
    breaker_floor: Annotated[int, Field(ge=1)] = Field(
        default=10_000, description="images of a source that an hour may take whatever their share"
    )
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    max_taint_days: Annotated[int, Field(ge=0)] = 14
    inline_leaves: Annotated[int, Field(ge=1)] = Field(
        default=131_072, description="work orders of more leaves run as leased tasks"
    )
    key_retention_days: Annotated[int, Field(ge=0)] = Field(
        default=0, description="destroy a day's request keys this long after it, once its requests are closed; 0: never"
    )
    reconcile_hours: Annotated[float, Field(ge=0)] = Field(
        default=24.0, description="how often rescan counts what came in, was erased and is there; 0: after orders only"
    )
    audit_seconds: Annotated[float, Field(gt=0)] = 60.0
    witnesses: tuple[WitnessSetting, ...] = Field(
        default=(), description='JSON list of {"url", "vkey"}: who cosigns checkpoints; orders wait for them'
    )
    witness_quorum: Annotated[int, Field(ge=0)] = Field(
        default=0, description="how many of the witnesses must have cosigned; 0: all of them"
    )
    witness_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    witness_wait_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=2.0, description="how long people's requests wait for witnesses and time stamp before they go ahead"
    )
    log_url: Annotated[str, Field(pattern=r"^(s3://[^/]+(/.*)?)?$")] = Field(
        default="", description="where the evidence log is: s3://BUCKET/PREFIX, or below `data` when empty"
    )
    timestamp_url: str = Field(default="", description="RFC 3161 time stamping authority; orders wait for it")
    not_covered: tuple[str, ...] = Field(
        default=(
            "database write-ahead log and dead rows, until they are overwritten",
            "backups of the stores, until they expire",
            "copies that recipients made",
            "disk blocks freed and not yet reused",
        ),
        description="what certificates say they do not cover",
    )

    @classmethod
    def read(cls, **values: Any) -> Self:  # noqa: ANN401 - pydantic checks every value
        """From the environment. Raises `Misconfigured` naming the variable."""
        known = {PREFIX + name.upper() for name in cls.model_fields} | EXTRA
        unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name.upper() not in known)
        if unknown:
            near = difflib.get_close_matches(unknown[0].upper(), known, n=1)
            hint = f"did you mean {near[0]}? Known" if near else "known"
            message = f"{unknown[0]} is not a setting; {hint} are {', '.join(sorted(known))}"
            raise Misconfigured(message)
        try:
            found = cls(**values)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            name = PREFIX + str((first["loc"] or ("witness_quorum",))[0]).upper()
            message = f"{name}: {first['msg']}"
            raise Misconfigured(message) from None
        if crashing.VARIABLE in os.environ and not found.audience.startswith(crashing.NAMED_AFTER_A_TEST):
            message = (
                f"{crashing.VARIABLE} makes workers kill themselves: expected an EXPUNGE_AUDIENCE that begins with "
                f"{crashing.NAMED_AFTER_A_TEST!r}, or the variable not set"
            )
            raise Misconfigured(message)
        return found

    def policy(self) -> Policy:
        """The settings of judgement as a value."""
        return Policy(
            window=timedelta(milliseconds=self.sweep_window_ms),
            sweep_requests=self.sweep_requests,
            approval_images=self.approval_images,
            approval_time=timedelta(days=self.approval_days),
            attempts=self.attempts,
            max_taint_age=timedelta(days=self.max_taint_days),
            witness_quorum=self.witness_quorum or len(self.witnesses),
            timestamped=bool(self.timestamp_url),
            witness_wait=timedelta(seconds=self.witness_wait_seconds),
            breaker_artifacts=self.breaker_artifacts,
            breaker_share=self.breaker_share,
            breaker_floor=self.breaker_floor,
        )

    @model_validator(mode="after")
    def _a_quorum_that_can_be(self) -> Self:
        names = [one.key.name for one in self.witnesses]
        if len(set(names)) != len(names) or self.witness_quorum > len(names):
            message = "EXPUNGE_WITNESS_QUORUM: expected at most as many as EXPUNGE_WITNESSES names, each once"
            raise ValueError(message)
        return self

    @property
    def origin(self) -> str:
        """The evidence log's name."""
        return f"{self.audience}/log"

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for child processes."""
        dumped = self.model_dump(mode="json")
        plain = {name: value for name, value in dumped.items() if value != ""}
        return {
            PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in plain.items()
        }


EXTRA = {
    "EXPUNGE_IMAGE",
    "EXPUNGE_MEMORY",
    "EXPUNGE_SECRETS",
    "EXPUNGE_PUBLISHER_KEY_FILE",
    "EXPUNGE_TEST_POSTGRES",
    "EXPUNGE_TEST_KAFKA",
    "EXPUNGE_TEST_KAFKA_VERSION",
    "EXPUNGE_TEST_S3_ALL",
    "EXPUNGE_TEST_S3_ENDPOINT",
    "EXPUNGE_TEST_S3_ACCESS_KEY",
    "EXPUNGE_TEST_S3_SECRET_KEY",
    "EXPUNGE_TEST_S3_REGION",
    "EXPUNGE_VERSITYGW",
    "EXPUNGE_MINISTACK",
    crashing.VARIABLE,
}
"""Variables with our prefix that are not settings of a worker: of docker-compose.yml, of commands, of tests."""
