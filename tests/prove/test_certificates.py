"""Every byte of a certificate is signed or checked, and what is no certificate is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.cli.main import main
from brise.errors import BriseError, CertificateError
from brise.prove import certificates, verify
from brise.prove.verify import VerifyOptions
from brise.traffic.seal import SigningKey
from tests.traffic.small_order import ENCODINGS

STORED = Path(__file__).parents[1] / "stored" / "v0_1" / "certificate.json"
ZERO = "0" * 64


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A genuine certificate with every kind of value, of 3 clusters, so that all its bytes can be changed."""
    value = json.loads(STORED.read_text())["certificate"]
    value |= {"differences": [1.0, 0.5, -1.0], "path": value["path"][:3], "n": 3, "claims": value["claims"][:1]}
    path: Path = tmp_path_factory.mktemp("c") / "short.json"
    signed = certificates.sign(certificates.forms.from_json(value), SigningKey(b"7" * 32))
    certificates.write(signed, path)
    return path


def outcome(path: Path, data: bytes) -> tuple[bool, object]:
    """Whether it is genuine, and what it means."""
    path.write_bytes(data)
    try:
        found = certificates.read(path)
    except CertificateError:
        return False, None
    return found.is_genuine, found


def without_space(data: bytes) -> bytes:
    return b"".join(data.split())


def test_no_single_byte_can_be_changed_put_in_or_taken_out(short: Path, tmp_path: Path,
                                                           pytestconfig: pytest.Config) -> None:
    """Every byte in five ways with --slow, otherwise every fourth one in one way."""
    data, changed = short.read_bytes(), tmp_path / "changed.json"
    is_genuine, whole = outcome(changed, data)
    assert is_genuine
    kinds, every = (5, 1) if pytestconfig.getoption("--slow") else (1, 4)
    for at in range(0, len(data), every):
        for byte in (data[at] ^ 1, ord("0"), ord(" "), data[at] ^ 0x20, ord('"'))[:kinds]:
            for other in (data[:at] + bytes([byte]) + data[at + 1:], data[:at] + bytes([byte]) + data[at:]):
                is_genuine, found = outcome(changed, other)
                is_same = found == whole and without_space(other) == without_space(data)
                assert not is_genuine or is_same, at
        is_genuine, found = outcome(changed, data[:at] + data[at + 1:])
        assert not is_genuine or (chr(data[at]).isspace() and found == whole), at


@pytest.mark.parametrize(("old", "new", "says"), [
    ('"delta": 0.1', '"delta": 0.10', "another spelling of"), ('"delta": 0.1', '"delta": 1e-1', "another spelling of"),
    ('"futility": 20.0', '"futility": 20', "the certificate was changed"),
    ('"task": "tickets"', '"task": "\\u0074ickets"', "another spelling of"),
    ('"delta": 0.1', '"delta": 0.5, "delta": 0.1', "'delta' stands twice"),
    ('"digest": "0', '"digest": "1', "its digest is not of its content"),
    ('"digest": "0', '"digest": "0e", "digest": "0', "'digest' stands twice"),
    ('\n "digest"', '\n "digesT"', "'digest' is missing"), 
    ('"made_by"', '"note": 1, "made_by"', "'note', which brise does not"),
    ('"signature": "bb', '"signature": "BB', "hexadecimal digits in lower case"),
    ('"signature": "bb', '"signature": "b b', "hexadecimal digits in lower case"),
    ('"fingerprint": "v1"', '"fingerprint": null', "student is not in the form"), ("0.1", "NaN", "delta is nan"),
    ("0.1", "1e999", "another spelling of"), ("{", "[" * 5000, "no JSON"),
    ('"delta": 0.1', '"delta": ' + "9" * 5000, "")])
def test_another_spelling_of_a_certificate_is_none(old: str, new: str, says: str, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.json"
    path.write_text(STORED.read_text().replace(old, new, 1))
    assert main(["prove", "--verify", str(path)]) in (2, 3)
    shown = capsys.readouterr()
    assert says in shown.out + shown.err and "signature: ok" not in shown.out


@pytest.mark.parametrize("key", ENCODINGS)
def test_a_key_of_small_order_signs_nothing(key: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(STORED.read_text())
    path = tmp_path / "c.json"
    path.write_text(json.dumps(value | {"public_key": key.hex(), "signature": key.hex() + ZERO}))
    assert main(["prove", "--verify", str(path)]) == 2
    assert "no certificate: public_key is" in capsys.readouterr().err
    for words in (["prove", "--verify", str(path), "--key", key.hex()], ["switch", "t", "--trust", key.hex()]):
        with pytest.raises(SystemExit) as exit_status:
            main(words)
        assert exit_status.value.code == 2 and "is no public key" in capsys.readouterr().err
    with pytest.raises(CertificateError, match="no key"):
        certificates.of_line(value | {"public_key": key.hex(), "task": "tickets"})


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
        [10**400, -1, 0, 2**63, 1e308, -0.0, "\ud800", "\0", "", ZERO, "nan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in inner for place in places(item, (*path, name)))]


PLACES = [place for place in places(json.loads(STORED.read_text())) if not any(
    isinstance(name, int) and name > 1 for name in place)]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), odd=ODD)
def test_odd_values_anywhere_are_no_certificate_and_no_traceback(
        place: tuple[Any, ...], odd: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    value = {"": json.loads(STORED.read_text())}
    holder: Any = value
    for name in ("", *place)[:-1]:
        holder = holder[name]
    before, holder[("", *place)[-1]] = holder[("", *place)[-1]], odd
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_text(json.dumps(value[""]))
    try:
        found = verify.verify(VerifyOptions(path))
    except CertificateError as error:
        assert str(error.args[0])
    except BriseError as error:
        pytest.fail(f"another error: {error}")
    else:
        assert not found.is_sound or (type(odd), odd) == (type(before), before)


@pytest.mark.parametrize(("field", "odd", "says"), [
    ("alpha", [{"role": "user"}], "no certificate: alpha is [{'role': 'user'}], which is no number over 0 and under 1"),
    ("alpha", True, "alpha is True"), ("alpha", 10**400, "alpha is 1"), ("alpha", "0.05", "alpha is '0.05'"),
    ("expires_at_s", 1e300, "expires_at_s is 1e+300"), ("candidate", 1.5, "candidate is 1.5, which is no whole number"),
    ("window", {"rows": 1}, "window.source is missing"), ("labels", None, "labels is None, which is no text"),
    ("claims", [1], "claims[0] is 1, which is no object"), ("selection", [], "selection is [], which is no object")])
def test_a_value_of_an_odd_type_is_named(field: str, odd: object, says: str, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(STORED.read_text())
    value["certificate"][field] = odd
    path = tmp_path / "c.json"
    path.write_text(json.dumps(value))
    assert main(["prove", "--verify", str(path)]) == 2
    assert says in capsys.readouterr().err


def test_the_signer_is_the_one_that_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    key = json.loads(STORED.read_text())["public_key"]
    words = ["prove", "--verify", str(STORED)]

    def said(*more: str) -> tuple[int, str]:
        return main([*words, *more]), capsys.readouterr().out

    status, shown = said()
    assert status == 1 and "unknown signer" in shown and key in shown, "no key is expected and this machine has none"
    assert said("--key", key)[0] == 0 and said("--key", key.upper())[0] == 0
    keys = tmp_path / "gateway" / "keys"
    keys.mkdir(parents=True)
    (keys / "their-gateway.pub").write_text(key + "\n")
    (tmp_path / "key.txt").write_text(key)
    assert said("--key", "their-gateway")[0] == 0 and said("--key", str(tmp_path / "key.txt"))[0] == 0
    other = SigningKey(b"8" * 32).public.hex()
    status, shown = said("--key", other)
    assert status == 1 and "signature: WRONG: unknown signer" in shown and other in shown and key in shown
    status, shown = said("--key", "own")
    assert status == 1 and "expected is this machine's key" in shown
    assert said()[0] == 1, "the machine's own key is expected where it has one"
    assert said("--key", key)[0] == 0


def test_a_changed_certificate_is_wrong_whoever_signed_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.json"
    path.write_text(STORED.read_text().replace('"task": "tickets"', '"task": "other"'))
    assert main(["prove", "--verify", str(path), "--key", json.loads(STORED.read_text())["public_key"]]) == 3
    assert "changed after it was signed" in capsys.readouterr().out
    assert main(["prove", "--pairs", str(path), "--key", "own"]) == 1
    assert "--key needs --verify" in capsys.readouterr().err


def test_a_ledger_line_says_what_its_certificate_says(tmp_path: Path) -> None:
    line = json.loads(STORED.read_text()) | {"task": "tickets", "path": "x", "n": 90}
    assert certificates.of_line(line).is_genuine
    with pytest.raises(CertificateError, match="line says task is 'other', its certificate says 'tickets'"):
        certificates.of_line(line | {"task": "other"})
