"""DSSE envelopes and Ed25519 keys: spec vectors, foreign readers, and every way to be refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import canonical, dsse
from expunge.domain.dsse import PublicKey, SigningKey
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.limits import MESSAGE_BYTES

KIND = "application/vnd.in-toto+json"
KEY = SigningKey.from_seed(b"\x01" * 32)
OTHER = SigningKey.from_seed(b"\x02" * 32)

RFC_8032 = [  # section 7.1, tests 1 to 3: seed, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2"
            "4655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302ae"
            "eb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28"
            "dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_rfc_8032_vectors_are_reproduced(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))


def test_the_specs_own_vector_is_encoded() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == expected


def test_lengths_in_the_encoding_count_bytes() -> None:
    assert dsse.pae("é", b"\x00\xff") == b"DSSEv1 2 \xc3\xa9 2 \x00\xff"
    assert dsse.pae("", b"") == b"DSSEv1 0  0 "


@given(st.binary(max_size=200), st.text(min_size=1, max_size=20))
def test_signed_envelopes_are_canonical_and_give_the_payload_back(payload: bytes, kind: str) -> None:
    envelope = dsse.sign(payload, kind, KEY)
    assert canonical.dumps(json.loads(envelope)) == envelope
    assert dsse.verify(dsse.parse(envelope), KEY.public, kind) == payload
    assert dsse.sign(payload, kind, KEY) == envelope


def test_cryptography_verifies_what_we_sign() -> None:
    value = json.loads(dsse.sign(b"payload", KIND, KEY))
    theirs = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key()
    theirs.verify(base64.b64decode(value["signatures"][0]["sig"]), dsse.pae(KIND, b"payload"))
    assert base64.b64decode(value["payload"]) == b"payload"


def test_key_ids_and_text_forms() -> None:
    public = KEY.public
    assert public.key_id == KEY.key_id == "34750f98bd59fcfc946da45aaabe933be154a4b5094e1c4abf42866505f3c97e"
    assert PublicKey.from_base64(public.to_base64()) == public
    assert PublicKey.from_pem(public.to_pem()) == public
    assert public.to_pem().startswith("-----BEGIN PUBLIC KEY-----\n")
    assert PublicKey.from_pem(public.to_pem().replace("\n", "\r\n")) == public


def test_a_signing_key_does_not_show_its_secret() -> None:
    assert repr(KEY) == f"SigningKey(key_id='{KEY.key_id}')"


def test_keys_of_another_length_or_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 32 bytes, got 31"):
        PublicKey(bytes(31))
    with pytest.raises(ValueError, match="expected 32 bytes, got 33"):
        SigningKey.from_seed(bytes(33))
    ec = generate_private_key(SECP256R1()).public_key()
    pem = ec.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for text in (pem, "", "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(Rejected):
            PublicKey.from_pem(text)
    for text in ("AAAA", "!", KEY.public.to_base64()[:-1]):
        with pytest.raises(Rejected):
            PublicKey.from_base64(text)


def refused(envelope: bytes) -> bool:
    try:
        dsse.verify(dsse.parse(envelope), KEY.public, KIND)
    except (Rejected, Tampered):
        return True
    return False


def test_every_flipped_byte_is_refused_except_in_the_key_id_which_is_a_hint() -> None:
    envelope = dsse.sign(b'{"a":"some payload"}', KIND, KEY)
    hint = envelope.index(KEY.key_id.encode())
    for at in range(len(envelope)):
        for bit in range(8):
            flipped = envelope[:at] + bytes([envelope[at] ^ 1 << bit]) + envelope[at + 1 :]
            if not hint <= at < hint + 64:
                assert refused(flipped), (at, bit)
    assert not refused(envelope)
    assert not refused(envelope.replace(KEY.key_id.encode(), b"another"))


def test_another_key_or_payload_type_is_tampered() -> None:
    envelope = dsse.parse(dsse.sign(b"payload", KIND, KEY))
    with pytest.raises(Tampered, match=r"got none that verifies"):
        dsse.verify(envelope, OTHER.public, KIND)
    with pytest.raises(Tampered, match="expected payload type text/plain"):
        dsse.verify(envelope, KEY.public, "text/plain")


def signed_by(*keys: SigningKey) -> dict[str, Any]:
    values = [json.loads(dsse.sign(b"payload", KIND, key)) for key in keys]
    return {**values[0], "signatures": [one for value in values for one in value["signatures"]]}


def test_any_of_several_signatures_may_be_the_known_keys() -> None:
    value = signed_by(OTHER, KEY)
    assert dsse.verify(dsse.parse(canonical.dumps(value)), KEY.public, KIND) == b"payload"
    del value["signatures"][1]["keyid"]
    value["signatures"][0] = {"sig": base64.b64encode(b"short").decode(), "keyid": KEY.key_id}
    assert dsse.verify(dsse.parse(canonical.dumps(value)), KEY.public, KIND) == b"payload"


def test_url_safe_base64_is_read_as_the_spec_demands() -> None:
    payload = b"\xfb\xff\xfe\x3e\x3f"
    value = json.loads(dsse.sign(payload, KIND, KEY))
    assert "+" in value["payload"]
    value["payload"] = base64.urlsafe_b64encode(payload).decode()
    assert dsse.verify(dsse.parse(json.dumps(value).encode()), KEY.public, KIND) == payload


GOOD = signed_by(KEY)


@given(
    payload=st.binary(max_size=40),
    kind=st.text(st.characters(min_codepoint=32, max_codepoint=127), min_size=1),
    at=st.integers(0, 400),
    byte=st.integers(0, 255),
)
def test_the_short_way_to_read_an_envelope_reads_what_the_long_one_does(
    payload: bytes, kind: str, at: int, byte: int
) -> None:
    made = bytearray(dsse.sign(payload, kind, KEY))
    made[at % len(made)] = byte
    # Blanks around the whole are no envelope of ours, but the same JSON.
    assert _read(bytes(made)) == _read(b" " + bytes(made) + b" ")


def _read(data: bytes) -> dsse.Envelope | str:
    try:
        return dsse.parse(data)
    except Rejected as error:
        return error.code


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {**GOOD, "extra": 1},
        {key: GOOD[key] for key in ("payload", "signatures")},
        {**GOOD, "payload": 1},
        {**GOOD, "payload": "a-+/"},
        {**GOOD, "payload": "AB=="},
        {**GOOD, "payloadType": None},
        {**GOOD, "payloadType": ""},
        {**GOOD, "signatures": []},
        {**GOOD, "signatures": {}},
        {**GOOD, "signatures": GOOD["signatures"] * 17},
        {**GOOD, "signatures": ["sig"]},
        {**GOOD, "signatures": [{"keyid": "x"}]},
        {**GOOD, "signatures": [{**GOOD["signatures"][0], "cert": ""}]},
        {**GOOD, "signatures": [{**GOOD["signatures"][0], "keyid": 1}]},
        {**GOOD, "signatures": [{"sig": None}]},
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_envelopes_of_another_shape_are_malformed(value: Any) -> None:
    with pytest.raises(Rejected) as caught:
        dsse.parse(json.dumps(value).encode())
    assert caught.value.code == "malformed"


def test_an_envelope_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(Rejected) as caught:
        dsse.parse(b" " * (MESSAGE_BYTES + 1))
    assert caught.value.code == "too-large"
