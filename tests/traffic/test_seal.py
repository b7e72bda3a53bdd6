"""What is sealed opens for its key and its place only; keys are made once and kept to their owner."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from Crypto.PublicKey import ECC
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import StoreError
from brise.traffic import seal
from brise.traffic.seal import SealError, SigningKey
from tests.traffic.small_order import ENCODINGS, P, ordinates


@given(st.binary(max_size=2000), st.text(max_size=30))
def test_what_is_sealed_opens(plain: bytes, binding: str) -> None:
    key = seal.new_key()
    binding = binding.encode(errors="replace").decode()
    assert seal.unseal(key, binding, seal.seal(key, binding, plain)) == plain


def test_it_opens_for_no_other_key_row_or_content() -> None:
    key, sealed = b"k" * 32, seal.seal(b"k" * 32, "exchanges:a", b"secret")
    for wrong_key, binding, content in [
            (b"x" * 32, "exchanges:a", sealed), (key, "exchanges:b", sealed), (key, "answers:a", sealed),
            (key, "exchanges:a", sealed[:-1]), (key, "exchanges:a", b""),
            *((key, "exchanges:a", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1:])
              for at in range(len(sealed)))]:
        with pytest.raises(SealError):
            seal.unseal(wrong_key, binding, content)


def test_the_same_content_is_never_sealed_the_same_way_twice() -> None:
    assert len({seal.seal(b"k" * 32, "a", b"same") for _ in range(100)}) == 100


def test_keys_are_made_once_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "keys"
    assert seal.load_or_create_master_key(folder) == seal.load_or_create_master_key(folder)
    signing = seal.load_or_create_signing_key(folder)
    assert signing == seal.load_or_create_signing_key(folder) and "seed" not in repr(signing)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "master.key": 0o600, "signing.key": 0o600}


def test_of_many_makers_at_once_one_wins(tmp_path: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(seal.load_or_create_master_key(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and [path.name for path in tmp_path.iterdir()] == ["master.key"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    seal.load_or_create_master_key(tmp_path)
    (tmp_path / "master.key").chmod(0o644)
    with pytest.raises(StoreError, match=r"open to others.*\nhint: chmod 600"):
        seal.load_or_create_master_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"zz" * 32, b"\xff\xfe", b"00" * 31])
def test_a_damaged_key_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    for name, load in (("master.key", seal.load_or_create_master_key),
                       ("signing.key", seal.load_or_create_signing_key)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
        with pytest.raises(StoreError, match=f"{name}' holds no"):
            load(tmp_path)


def test_signatures_hold_for_their_content_and_key_only(tmp_path: Path) -> None:
    key, other = seal.load_or_create_signing_key(tmp_path), seal.SigningKey(b"s" * 32)
    signature = seal.sign(key, b"certificate")
    assert len(signature) == 64 and seal.verify(key.public, b"certificate", signature)
    assert not seal.verify(key.public, b"certificatE", signature)
    assert not seal.verify(other.public, b"certificate", signature)
    assert not seal.verify(key.public, b"certificate", signature[:-1])
    assert not seal.verify(b"no key", b"certificate", signature)


def test_the_first_vector_of_rfc_8032() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = seal.SigningKey(seed)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert seal.sign(key, b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b")


def test_keys_of_small_order_and_second_spellings_are_no_keys() -> None:
    assert len(ordinates()) == 5 and len(ENCODINGS) == 14
    assert all(seal.why_no_key(key) is not None for key in ENCODINGS)
    assert all(not seal.verify(key, b"anything", key + bytes(32)) for key in ENCODINGS)
    assert seal.why_no_key(SigningKey(b"7" * 32).public) is None
    assert seal.why_no_key((P + 3).to_bytes(32, "little")) == "it is not in its canonical form"
    assert seal.why_no_key((2).to_bytes(32, "little")) == "it is no point of the curve"
    assert "31 bytes" in str(seal.why_no_key(bytes(31)))


def test_a_public_key_is_read_from_hexadecimal_digits_and_from_pem() -> None:
    key = ECC.generate(curve="Ed25519")
    raw = bytes(key.public_key().export_key(format="raw"))
    pem = key.public_key().export_key(format="PEM").encode()
    for data in (raw.hex().encode(), raw.hex().upper().encode() + b"\n", pem):
        assert seal.public_key_in(data) == raw
    other = ECC.generate(curve="P-256").public_key().export_key(format="PEM").encode()
    for data in (b"", b"no key", b"\xff" * 40, other):
        assert seal.public_key_in(data) is None


def test_folders_of_keys_are_for_their_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        seal.load_or_create_master_key(tmp_path / "a" / "gateway" / "keys")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")} == {0}
