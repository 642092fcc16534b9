"""Signed notes, checkpoints and cosignatures: published examples, round trips, and every way to be refused."""

from __future__ import annotations

import pytest

from expunge.domain import note
from expunge.domain.canonical import base64_encode
from expunge.domain.dsse import PublicKey, SigningKey
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.note import Checkpoint, Cosignature, NoteKey, SignatureType

LOG = SigningKey.from_seed(b"\x03" * 32)
WITNESS = SigningKey.from_seed(b"\x04" * 32)
ORIGIN = "log.example/expunge"
LOG_KEY = NoteKey.log(ORIGIN, LOG.public)
WITNESS_KEY = NoteKey.witness("witness.example", WITNESS.public)
CHECKPOINT = Checkpoint(ORIGIN, 20_852_163, bytes(range(32)))
SIGNED = note.sign_checkpoint(CHECKPOINT, LOG, ORIGIN)
COSIGNED = SIGNED + note.sign_cosignature(SIGNED, WITNESS, "witness.example", 1_679_315_147)

# Examples of the C2SP signed-note specification and of Go's golang.org/x/mod/sumdb/note.
PUBLISHED = [
    (
        "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "This is an example message.\n",
        (
            "— example.com/foo "
            "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
        ),
    ),
    (
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n",
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n",
    ),
]


@pytest.mark.parametrize(("vkey", "text", "line"), PUBLISHED)
def test_published_notes_open_with_their_published_keys(vkey: str, text: str, line: str) -> None:
    key = NoteKey.parse(vkey)
    assert key.encode() == vkey
    assert note.open_note(f"{text}\n{line}".encode(), [key]) == note.Note(text, (key,), ())


def test_peter_neumanns_published_signing_key_gives_his_published_note() -> None:
    # PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz
    seed = bytes.fromhex("810a1402d5146c8d84f2443330f54080ebf98ee17d9c74f6252fc5d5c7283173")
    _, text, line = PUBLISHED[1]
    assert note.sign_note(text, SigningKey.from_seed(seed), "PeterNeumann") == f"{text}\n{line}".encode()


def test_the_same_key_has_another_id_for_each_way_of_signing() -> None:
    assert NoteKey.log("a", LOG.public).key_id != NoteKey.witness("a", LOG.public).key_id
    assert NoteKey.parse(WITNESS_KEY.encode()) == WITNESS_KEY
    assert NoteKey.parse(WITNESS_KEY.encode()).type is SignatureType.COSIGNATURE


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+00000000",
        "name+00000000+",
        "name+00000000+!",
        PUBLISHED[0][0][:-4],
        PUBLISHED[0][0].replace("foo", "bar"),
        PUBLISHED[0][0].replace("530d903a", "530D903A"),
        PUBLISHED[0][0].replace("530d903a", "530d903b"),
        PUBLISHED[0][0].replace("+Ae", "+Ce"),
        PUBLISHED[0][0].replace("example.com/foo", ""),
    ],
)
def test_verifier_keys_that_do_not_add_up_are_malformed(vkey: str) -> None:
    with pytest.raises(Rejected):
        NoteKey.parse(vkey)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\n", "a\x01"])
def test_key_names_that_no_note_can_carry_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="key name"):
        NoteKey.log(name, LOG.public)


def test_a_checkpoint_is_three_lines() -> None:
    assert CHECKPOINT.text() == f"{ORIGIN}\n20852163\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    assert Checkpoint.parse(CHECKPOINT.text()) == CHECKPOINT
    assert Checkpoint.parse(Checkpoint("o", 0, bytes(32)).text()).size == 0
    assert Checkpoint.parse(Checkpoint("o", 2**63 - 1, bytes(32)).text()).size == 2**63 - 1


ROOT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        f"o\n1\n{ROOT}",
        f"o\n1\n{ROOT}\n\n",
        f"o\n1\n{ROOT}\nextension\n",
        f"\n1\n{ROOT}\n",
        f"o\n01\n{ROOT}\n",
        f"o\n-1\n{ROOT}\n",
        f"o\n+1\n{ROOT}\n",
        f"o\n 1\n{ROOT}\n",
        f"o\n\n{ROOT}\n",
        f"o\n\u0661\n{ROOT}\n",
        f"o\n{2**63}\n{ROOT}\n",
        f"o\n1{'0' * 30}\n{ROOT}\n",
        f"o\r\n1\r\n{ROOT}\r\n",
        f"o\r\n1\n{ROOT}\n",
        f"o\n1\n{ROOT[:-2]}9=\n",
        f"o\n1\n{ROOT[:-1]}\n",
        f"o\n1\n{ROOT[:-4]}\n",
        "o\n1\n\n",
        f"o\n1\n{ROOT} \n",
    ],
)
def test_checkpoints_with_any_other_spelling_are_malformed(text: str) -> None:
    with pytest.raises(Rejected):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    ("origin", "size", "root"), [("", 0, 32), ("a\nb", 0, 32), ("o", -1, 32), ("o", 2**63, 32), ("o", 0, 31)]
)
def test_checkpoints_cannot_be_made_of_impossible_values(origin: str, size: int, root: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        Checkpoint(origin, size, bytes(root))


def test_a_signed_checkpoint_opens_with_the_logs_key() -> None:
    assert note.open_checkpoint(SIGNED, [LOG_KEY]) == CHECKPOINT
    assert note.open_checkpoint(COSIGNED, [LOG_KEY, WITNESS_KEY], origin=ORIGIN) == CHECKPOINT
    assert note.open_note(COSIGNED, [LOG_KEY, WITNESS_KEY]).cosignatures == (Cosignature(WITNESS_KEY, 1_679_315_147),)
    with pytest.raises(Tampered, match="expected origin other"):
        note.open_checkpoint(SIGNED, [LOG_KEY], origin="other")


def test_cosignatures_alone_do_not_make_a_checkpoint_the_logs() -> None:
    with pytest.raises(Tampered, match="only cosignatures"):
        note.open_checkpoint(COSIGNED, [WITNESS_KEY])


def test_a_cosignature_gives_its_latest_time() -> None:
    assert note.verify_cosignature(COSIGNED, WITNESS_KEY) == 1_679_315_147
    again = COSIGNED + note.sign_cosignature(COSIGNED, WITNESS, "witness.example", 2**63 - 1)
    assert note.verify_cosignature(again, WITNESS_KEY) == 2**63 - 1
    with pytest.raises(Tampered, match="got none"):
        note.verify_cosignature(SIGNED, WITNESS_KEY)
    with pytest.raises(ValueError, match="expected a witness key"):
        note.verify_cosignature(COSIGNED, LOG_KEY)


def test_cosigning_needs_a_checkpoint_and_a_time() -> None:
    with pytest.raises(Rejected):
        note.sign_cosignature(note.sign_note("no checkpoint\n", LOG, ORIGIN), WITNESS, "w", 0)
    for timestamp in (-1, 2**63):
        with pytest.raises(ValueError, match="POSIX seconds"):
            note.sign_cosignature(SIGNED, WITNESS, "w", timestamp)


def cosignature_line(timestamp: int, signature: bytes) -> bytes:
    data = WITNESS_KEY.key_id + timestamp.to_bytes(8, "big") + signature
    return f"— witness.example {base64_encode(data)}\n".encode()


@pytest.mark.parametrize(
    "line",
    [
        cosignature_line(1, bytes(64)),
        cosignature_line(1, b""),
        cosignature_line(1, bytes(63)),
        cosignature_line(2**63, WITNESS.sign(f"cosignature/v1\ntime {2**63}\n{CHECKPOINT.text()}".encode())),
    ],
)
def test_bad_cosignatures_by_a_known_witness_reject_the_note(line: bytes) -> None:
    with pytest.raises(Tampered, match=r"cosignature by witness\.example"):
        note.open_checkpoint(SIGNED + line, [LOG_KEY, WITNESS_KEY])
    assert note.open_checkpoint(SIGNED + line, [LOG_KEY]) == CHECKPOINT


def test_signatures_by_unknown_keys_are_ignored_even_if_they_share_a_name_or_an_id() -> None:
    same_name = note.sign_checkpoint(CHECKPOINT, WITNESS, ORIGIN).split(b"\n\n")[1]
    line = SIGNED.split(b"\n\n")[1]
    same_id = line.replace(ORIGIN.encode(), b"other.example")
    assert note.open_checkpoint(SIGNED + same_name + same_id, [LOG_KEY]) == CHECKPOINT
    with pytest.raises(Tampered, match="got none"):
        note.open_checkpoint(SIGNED, [NoteKey.log("other", LOG.public)])
    with pytest.raises(Tampered, match="got none"):
        note.open_checkpoint(SIGNED, [])


def test_a_bad_signature_by_a_known_key_rejects_the_note_beside_a_good_one() -> None:
    bad = f"— {ORIGIN} {base64_encode(LOG_KEY.key_id + bytes(64))}\n".encode()
    with pytest.raises(Tampered, match="got a bad one"):
        note.open_note(SIGNED + bad, [LOG_KEY])


def test_sixteen_signatures_and_more_are_accepted_but_not_any_number() -> None:
    line = SIGNED.split(b"\n\n")[1]
    assert len(note.open_note(SIGNED + line * 99, [LOG_KEY]).signers) == 100
    with pytest.raises(Rejected, match="at most 100 signatures"):
        note.open_note(SIGNED + line * 100, [LOG_KEY])
    with pytest.raises(Rejected, match="at most 1000000 bytes"):
        note.open_note(b"x" * 1_000_001, [LOG_KEY])


def test_two_keys_that_share_name_and_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoteKey, "key_id", property(lambda _: b"same"))
    with pytest.raises(ValueError, match="got two"):
        note.open_note(SIGNED, [LOG_KEY, NoteKey.log(ORIGIN, PublicKey(bytes(32)))])


def test_texts_with_empty_lines_are_split_at_the_last_one() -> None:
    text = "a\n\nb\n\n\nc — d\n"
    assert note.open_note(note.sign_note(text, LOG, ORIGIN), [LOG_KEY]).text == text
    assert note.open_note(note.sign_note("\n", LOG, ORIGIN), [LOG_KEY]).text == "\n"


@pytest.mark.parametrize("text", ["", "a", "a\r\n", "a\tb\n", "\x00\n"])
def test_texts_that_no_note_can_carry_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected text"):
        note.sign_note(text, LOG, ORIGIN)


LINE = SIGNED.decode().split("\n\n")[1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        f"text\n{LINE}".encode(),
        f"text\n\n{LINE[:-1]}".encode(),
        f"text\n\n{LINE}\n".encode(),
        f"text\n\n-{LINE[1:]}".encode(),
        f"text\n\n— {ORIGIN}\n".encode(),
        f"text\n\n—  {ORIGIN} AAAAAAAA\n".encode(),
        f"text\n\n— a+b {LINE.split()[2]}\n".encode(),
        f"text\n\n— a\u2003b {LINE.split()[2]}\n".encode(),
        f"text\n\n— {ORIGIN} AAAAAA==\n".encode(),
        f"text\n\n— {ORIGIN} AAAAAAAA AAAA\n".encode(),
        f"te\txt\n\n{LINE}".encode(),
        b"\xff\n\n" + LINE.encode(),
        SIGNED.replace(b"\n", b"\r\n"),
    ],
)
def test_what_is_not_a_note_is_malformed(data: bytes) -> None:
    with pytest.raises(Rejected):
        note.open_note(data, [LOG_KEY])


def test_every_flipped_bit_of_a_signed_checkpoint_is_refused() -> None:
    for at in range(len(SIGNED)):
        for bit in range(8):
            flipped = SIGNED[:at] + bytes([SIGNED[at] ^ 1 << bit]) + SIGNED[at + 1 :]
            with pytest.raises((Rejected, Tampered)):
                note.open_checkpoint(flipped, [LOG_KEY])


def test_every_flipped_bit_of_a_cosignature_line_is_refused_by_who_requires_it() -> None:
    for at in range(len(SIGNED), len(COSIGNED)):
        for bit in range(8):
            flipped = COSIGNED[:at] + bytes([COSIGNED[at] ^ 1 << bit]) + COSIGNED[at + 1 :]
            with pytest.raises((Rejected, Tampered)):
                note.verify_cosignature(flipped, WITNESS_KEY)
