"""DSSE v1 envelopes signed with Ed25519 (RFC 8032). Spec: https://github.com/secure-systems-lab/dsse.

Keys are pinned by the verifier: nothing in an envelope says which key to trust. PyNaCl signs and verifies twice as fast
as `cryptography`, which is used only for PEM.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from json.encoder import encode_basestring
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from expunge.domain import canonical
from expunge.domain.canonical import Json, base64_decode, base64_encode
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.limits import MESSAGE_BYTES

SEED_BYTES: Final = 32
PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SIGNATURES: Final = 16
"""Most signatures in one envelope; a verifier may have to try each."""


_HEAD: Final = b'{"payload":"'
_TAIL: Final = re.compile(
    rb'","payloadType":"([!#-\[\]-~]+)",'
    rb'"signatures":\[\{"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/]+={0,2})"\}\]\}'
)
"""What stands before and after the payload in envelopes as `sign` spells them, which nearly all are: nothing in them needs
a JSON parser, at six times the cost."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key. `raw`: 32 bytes (RFC 8032); `key_id`: lower-case hex SHA-256 of `raw`."""

    raw: bytes
    key_id: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `ValueError` when `raw` has another length."""
        if len(self.raw) != PUBLIC_BYTES:
            raise ValueError(f"expected {PUBLIC_BYTES} bytes, got {len(self.raw)}")
        object.__setattr__(self, "key_id", sha256(self.raw).hexdigest())

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's over exactly `message`. Never raises on bad signatures."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(signature + message, self.raw)
        except BadSignatureError:
            return False
        return True

    def to_base64(self) -> str:
        """Standard base64 of `raw`."""
        return base64_encode(self.raw)

    @classmethod
    def from_base64(cls, text: str) -> PublicKey:
        """The inverse of `to_base64`. Raises `Rejected("malformed")`."""
        return _public(base64_decode(text))

    def to_pem(self) -> str:
        """SubjectPublicKeyInfo in PEM (RFC 8410), as openssl reads it."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @classmethod
    def from_pem(cls, text: str) -> PublicKey:
        """The inverse of `to_pem`. Raises `Rejected("malformed")` for anything but one Ed25519 public key."""
        try:
            key = load_pem_public_key(text.encode())
        except Exception as error:  # cryptography raises several families, by format
            raise Rejected("malformed", "expected a public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise Rejected("malformed", f"expected an Ed25519 public key, got {type(key).__name__}")
        return cls(key.public_bytes_raw())


class SigningKey:
    """An Ed25519 signing key. Signatures are deterministic: same message, same bytes. Never shown by `repr`."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes, public: PublicKey) -> None:
        self._secret = secret
        self.public = public

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of a 32-byte seed (RFC 8032 calls it the private key). Raises `ValueError` for another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"expected {SEED_BYTES} bytes, got {len(seed)}")
        public, secret = crypto_sign_seed_keypair(seed)
        return cls(secret, PublicKey(public))

    @property
    def key_id(self) -> str:
        """The public key's id."""
        return self.public.key_id

    def sign(self, message: bytes) -> bytes:
        """Signature over exactly `message`, 64 bytes."""
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.key_id!r})"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope. `key_id` is an unauthenticated hint, empty when absent."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope, not verified. `payload`: the exact bytes that were signed."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding: the bytes that a signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, key: SigningKey) -> bytes:
    """A canonical JSON envelope (RFC 8785) with one signature. Same arguments, same bytes."""
    signature = key.sign(pae(payload_type, payload))
    # Written out: base64 and hex need no escapes, and a general encoder would cost a third of the signature.
    return (
        f'{{"payload":"{base64_encode(payload)}","payloadType":{encode_basestring(payload_type)},'
        f'"signatures":[{{"keyid":"{key.key_id}","sig":"{base64_encode(signature)}"}}]}}'
    ).encode()


def parse(envelope: bytes, limit: int = MESSAGE_BYTES) -> Envelope:
    """Read an envelope's shape; nothing is verified. Raises `Rejected`: "too-large" (over `limit` bytes) or "malformed".

    Stricter than the spec in one thing: unknown fields are refused, so that nothing unsigned rides along. Both base64
    alphabets are read, as the spec demands, so an envelope's bytes are not its identity: its payload's digest is.
    """
    if len(envelope) > limit:
        raise Rejected("too-large", f"expected at most {limit} bytes, got {len(envelope)}")
    if (ours := _ours(envelope)) is not None:
        return ours
    value = canonical.loads(envelope)
    if not isinstance(value, dict) or value.keys() != {"payload", "payloadType", "signatures"}:
        raise _malformed("exactly payload, payloadType and signatures")
    signatures, kind = value["signatures"], value["payloadType"]
    if not isinstance(kind, str) or not kind:
        raise _malformed("a payloadType")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= SIGNATURES:
        raise _malformed(f"1 to {SIGNATURES} signatures")
    return Envelope(_bytes(value["payload"]), kind, tuple(_signature(one) for one in signatures))


def _ours(envelope: bytes) -> Envelope | None:
    """An envelope that is spelled as `sign` spells it, else None."""
    end = envelope.find(b'"', len(_HEAD))
    found = _TAIL.fullmatch(envelope, end) if end > 0 and envelope.startswith(_HEAD) else None
    if found is None:
        return None
    kind, key_id, signature = found.groups()
    try:
        payload = base64_decode(envelope[len(_HEAD) : end].decode())
        return Envelope(payload, kind.decode(), (Signature(key_id.decode(), base64_decode(signature.decode())),))
    except (Rejected, UnicodeDecodeError):
        return None


def verify(envelope: Envelope, key: PublicKey, payload_type: str) -> bytes:
    """The payload, once `key` is seen to have signed it as `payload_type`. Raises `Tampered` otherwise.

    Only `key` decides: key ids in the envelope choose which signature is tried first and nothing else.
    """
    if envelope.payload_type != payload_type:
        raise Tampered("envelope", f"expected payload type {payload_type}, got another")
    message = pae(payload_type, envelope.payload)
    signatures = envelope.signatures
    if len(signatures) > 1:
        signatures = tuple(sorted(signatures, key=lambda one: one.key_id != key.key_id))
    for one in signatures:
        if key.verify(one.signature, message):
            return envelope.payload
    raise Tampered("envelope", f"expected a signature by key {key.key_id}, got none that verifies")


def _signature(value: Json) -> Signature:
    if not isinstance(value, dict) or not {"sig"} <= value.keys() <= {"keyid", "sig"}:
        raise _malformed("signatures of sig and keyid")
    key_id = value.get("keyid", "")
    if not isinstance(key_id, str):
        raise _malformed("a text keyid")
    return Signature(key_id, _bytes(value["sig"]))


def _bytes(value: Json) -> bytes:
    if not isinstance(value, str):
        raise _malformed("base64 text")
    if "-" in value or "_" in value:
        if "+" in value or "/" in value:
            raise _malformed("one base64 alphabet")
        value = value.replace("-", "+").replace("_", "/")
    return base64_decode(value)


def _malformed(expected: str) -> Rejected:
    return Rejected("malformed", f"expected {expected} in a DSSE envelope")


def _public(raw: bytes) -> PublicKey:
    try:
        return PublicKey(raw)
    except ValueError as error:
        raise Rejected("malformed", str(error)) from error
