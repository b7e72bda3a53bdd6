"""Planted secrets and personal data are replaced, near misses stay, and the same value keeps one placeholder."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.traffic.scrub import Scrubber
from tests.cpu_time import cpu_s

DATA = Path(__file__).parents[3] / "shared" / "data" / "pii_presidio" / "train.jsonl"
LETTERS = "aB3" * 20
PLANTED = [
    ("KEY", "sk-" + LETTERS[:40]), ("KEY", "sk-proj-" + LETTERS[:40]), ("KEY", "sk-ant-api03-" + LETTERS[:40]),
    ("KEY", "AKIA" + "IOSF0DNN7EXAMPLE"), ("KEY", "ghp_" + LETTERS[:36]), ("KEY", "xoxb-123456789012-" + LETTERS[:20]),
    ("KEY", "AIza" + LETTERS[:35]), ("KEY", "sk_live_" + LETTERS[:24]), ("KEY", "hf_" + LETTERS[:34]),
    *(("KEY", prefix + LETTERS[:32]) for prefix in (
        "xai-", "gsk_", "pplx-", "nvapi-", "r8_", "fw_", "tgp_v1_", "csk-", "pcsk_", "glpat-", "tvly-", "jina_",
        "lsv2_pt_", "sk-lf-", "dckr_pat_", "sq0atp-", "hvs.", "xapp-1-", "GOCSPX-", "sb_secret_")),
    *(("KEY", prefix + "0a" * 16) for prefix in ("shpat_", "shpss_", "dapi", "SK", "key-")),
    ("KEY", "npm_" + LETTERS[:36]), ("KEY", "SG." + LETTERS[:22] + "." + LETTERS[:43]), ("KEY", "dop_v1_" + "0a" * 32),
    ("KEY", "0a" * 16 + "-us12"), ("KEY", "1234567890:" + LETTERS[:35]),
    ("KEY", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + LETTERS[:43]),
    ("EMAIL", "anna.müller+x@mail.example.co.uk"), ("EMAIL", "a@b.io"), ("IBAN", "GB82 WEST 1234 5698 7654 32"),
    ("IBAN", "DE89370400440532013000"), ("CARD", "4111 1111 1111 1111"), ("CARD", "5500-0000-0000-0004"),
    ("CARD", "378282246310005"), ("IP", "192.168.17.4"), ("IP", "2001:db8::8a2e:370:7334"),
    ("PHONE", "+41 79 123 45 67"), ("PHONE", "+1 (415) 555-2671"), ("PHONE", "(020) 7946 0958"),
    ("PHONE", "415-555-2671"), ("PHONE", "030/123 4567"), ("PHONE", "07700 900 461"), ("PHONE", "415.555.2671x45"),
    ("PHONE", "01.84.17.61.18")]
NEAR = [
    "sk-learn is a library", "task-123456789012345678901234", "AKIA is short", "4111 1111 1111 1112", "1234567890123",
    "0000 0000 0000 0000", "GB82 WEST 1234 5698 7654 33", "version 1.2.3.400", "127.0.0.1", "12:30:45", "std::vector",
    "2024-01-02", "2024-01-02 10:20:30", "user@localhost", "@anna", "a @ b.com", "1.2.3.4.5", "999.1.1.1",
    "order 123-456-789", "password: required", "api_key=<your key>", "3.14159265358979", "1,234,567,890",
    "10.1000/182", "ISBN 978-3-16-148410-0", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "0.0.0.0", "{{user.email}}"]


@pytest.mark.parametrize(("kind", "secret"), PLANTED)
def test_planted_ones_are_found_wherever_they_stand(kind: str, secret: str) -> None:
    for text in (secret, f"it is {secret}, I think", f"({secret})", f'"{secret}"', f"x={secret}\nnext", f"<{secret}>."):
        scrubber = Scrubber()
        assert scrubber.scrub(text) == text.replace(secret, f"[{kind}_1]") and scrubber.counts == {kind: 1}


@pytest.mark.parametrize("text", NEAR)
def test_near_misses_stay(text: str) -> None:
    assert Scrubber().scrub(f"see {text} there") == f"see {text} there"


@pytest.mark.parametrize(("text", "expected"), [
    ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer [KEY_1]"),
    ("postgresql://eva:s3cret/x@db/x", "postgresql://eva:s3cret/x@db/x"),
    ("postgresql://eva:s3cret@db/x", "postgresql://eva:[PASSWORD_1]@db/x"),
    ('DB_PASSWORD="hunter42x"', 'DB_PASSWORD="[PASSWORD_1]"'),
    ("client_secret=EXAMPLE0key1EXAMPLE2", "client_secret=[PASSWORD_1]"),
    ("clientSecret: a1b2c3d4", "clientSecret: [PASSWORD_1]"),
    ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENG", "export AWS_SECRET_ACCESS_KEY=[PASSWORD_1]"),
    ("AccountKey=abcdEFGH1234abcd==;x", "AccountKey=[PASSWORD_1];x"),
    ("refresh_token => a1b2c3d4", "refresh_token => [PASSWORD_1]"),
    ('{\\"db_password\\": \\"hunter42x\\"}', '{\\"db_password\\": \\"[PASSWORD_1]\\"}'),
    ("max_tokens=12345678", "max_tokens=12345678"), ("tokenizer=abcdefg12", "tokenizer=abcdefg12"),
    ('password = "hunter42x"', 'password = "[PASSWORD_1]"'),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nbye", "[PRIVATE_KEY_1]\nbye"),
    ("-----BEGIN PRIVATE KEY-----\nMIIE cut", "[PRIVATE_KEY_1]")])
def test_secrets_that_are_called_so(text: str, expected: str) -> None:
    assert Scrubber().scrub(text) == expected


def test_a_field_that_is_called_a_secret_has_one() -> None:
    given = {"client_secret": "a1b2c3d4", "password": "required", "max_tokens": "12345678", "note": "a1b2c3d4"}
    assert Scrubber().scrub(given) == {**given, "client_secret": "[PASSWORD_1]"}
    assert json.loads(Scrubber().scrub(json.dumps(given)))["client_secret"] == "[PASSWORD_1]"


@pytest.mark.parametrize("part", ["xai-", "a_secret", "token=", "password: ", "a-", "sk-a_", "SG.a.", "1:", "key"])
def test_scrubbing_takes_time_in_proportion(part: str) -> None:
    def seconds(number: int) -> float:
        return min(cpu_s(lambda: Scrubber().scrub(part * number)) for _ in range(3))

    assert seconds(16_000) < 40 * max(seconds(2_000), 0.002)


def test_one_value_has_one_placeholder_in_a_whole_export() -> None:
    scrubber = Scrubber()
    assert scrubber.scrub("a@b.io to c@d.io") == "[EMAIL_1] to [EMAIL_2]"
    assert scrubber.scrub({"from": "C@D.io", "card": "4111111111111111", "cards": ["4111 1111 1111 1111"]}) == {
        "from": "[EMAIL_2]", "card": "[CARD_1]", "cards": ["[CARD_1]"]}
    assert scrubber.counts == {"EMAIL": 3, "CARD": 2}


def test_json_within_json_stays_json() -> None:
    arguments = json.dumps({"to": "a@b.io", "text": "line\na@b.io"})
    made = json.loads(Scrubber().scrub({"arguments": arguments})["arguments"])
    assert made == {"to": "[EMAIL_1]", "text": "line\n[EMAIL_1]"}
    untouched = '{"x":  1}'
    assert Scrubber().scrub(untouched) == untouched


def test_images_are_left_alone() -> None:
    image = "data:image/png;base64,4111111111111111"
    assert Scrubber().scrub(image) == image


@pytest.mark.parametrize(("text", "expected"), [
    ("data: a@b.io", "data: [EMAIL_1]"), ("data:a@b.io", "data:[EMAIL_1]"),
    ("data:text/plain,a@b.io", "data:text/plain,[EMAIL_1]"),
    ("data:image/png;base64,AAAA and a@b.io", "data:image/png;base64,AAAA and [EMAIL_1]")])
def test_a_text_that_begins_like_an_image_is_none(text: str, expected: str) -> None:
    assert Scrubber().scrub(text) == expected


def test_a_card_that_is_a_number_in_json() -> None:
    assert Scrubber().scrub({"card": 4111111111111111, "count": 12, "at": 1767225600000}) == {
        "card": "[CARD_1]", "count": 12, "at": 1767225600000}
    assert json.loads(Scrubber().scrub('{"card": 4111111111111111, "n": 1}')) == {"card": "[CARD_1]", "n": 1}


@given(st.text(alphabet="aB1@.:-+/ ()[]{}\"'=_%", max_size=80))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once = Scrubber().scrub(text)
    assert Scrubber().scrub(once) == once or re.search(r"\[[A-Z_]+_\d+\]", once)


@pytest.mark.parametrize("piece", ["a", "a@", "1 ", "1.", ":", "a.", "A1B2", "-----BEGIN ", "(0", "+1", "{", "://a:"])
def test_long_texts_take_time_in_proportion(piece: str) -> None:
    assert cpu_s(lambda: Scrubber().scrub(piece * (50_000 // len(piece)))) < 5.0


@pytest.mark.skipif(not DATA.exists(), reason="the shared data are not here")
def test_share_found_on_a_public_set() -> None:
    """As measured: 37 of 37 e-mail addresses, 21 of 21 IBANs, 95 of 95 cards; of 92 telephone numbers those that have
    their country, a nought, brackets or the form of North America, and no other number is taken for one."""
    kinds = {"EMAIL_ADDRESS": "EMAIL", "CREDIT_CARD": "CARD", "IBAN_CODE": "IBAN", "PHONE_NUMBER": "PHONE"}
    total, found, replaced = Counter[str](), Counter[str](), Counter[str]()
    for line in DATA.read_text(encoding="utf-8").splitlines():
        _, asked, answer = json.loads(line)["messages"]
        scrubber = Scrubber()
        scrubbed = scrubber.scrub(asked["content"])
        replaced += scrubber.counts
        for entity in json.loads(answer["content"]):
            if entity["type"] in kinds:
                total[kinds[entity["type"]]] += 1
                found[kinds[entity["type"]]] += entity["value"] not in scrubbed
    assert all(found[kind] == total[kind] for kind in ("EMAIL", "IBAN", "CARD"))
    assert found["PHONE"] > 0.6 * total["PHONE"] and set(replaced) == set(total)
    assert all(replaced[kind] <= found[kind] + 2 for kind in total)
