"""Keys are left out of what is written down, however many a request names, in time that grows with its length only."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from brise.traffic import redact
from brise.traffic.redact import FEW, MARK
from tests.cpu_time import cpu_s

ODD = "se/cr+et=with-41odd\\letters&ü"


def fillers(number: int) -> tuple[str, ...]:
    return tuple(f"{index:04}-filler-of-many-keys" for index in range(number))


@pytest.mark.parametrize("number", [0, 4 * FEW])  # others beside it: one after the other, and all at once
@pytest.mark.parametrize("secret", ["sk-proj-abcdefghijklmnop", "a/b+c=d-25e/f+g=", "12345678", ODD])
@pytest.mark.parametrize("form", [str, quote, lambda text: quote(text, safe=""), lambda text: json.dumps(text)[1:-1],
                                  lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
                                  lambda text: json.dumps(quote(text)).replace("/", "\\/")[1:-1]])
def test_a_secret_is_found_in_every_form(secret: str, form: object, number: int) -> None:
    assert callable(form)
    text = redact.text(f"wrong key <{form(secret)}>, or <{form(secret[:len(secret) * 3 // 4])}> is wrong",
                       (secret, *fillers(number)))
    assert text == f"wrong key <{MARK}>, or <{MARK}> is wrong" or len(secret) == 8


@pytest.mark.parametrize("number", [0, 4 * FEW])
def test_other_text_stays(number: int) -> None:
    text = "100% of \\n \\u0041 %zz %41 sk-proj is no key \\\\ \ud800 0001-fille"
    assert redact.text(text, ("sk-proj-abcdefghijklmnop", *fillers(number))) == text


def test_the_longer_of_two_keys_is_left_out_whole() -> None:
    long = "sk-" + "a" * 200
    for number in (0, 4 * FEW):
        keys = (long, long[:100], long[:90] + "b", *fillers(number))
        assert redact.text(f"{long} {long[:100]} x", keys) in (f"{MARK} {MARK} x", f"{MARK}aaa {MARK} x")


def test_keys_that_follow_each_other() -> None:
    keys = fillers(100)
    assert redact.text("".join(keys[:3]), keys).replace(MARK, "") == ""
    assert redact.text(" ".join(keys), keys) == " ".join([MARK] * 100)


def seconds(keys: tuple[str, ...], text: str) -> float:
    redact.text("", keys)
    return cpu_s(lambda: redact.text(text, keys))


@pytest.mark.parametrize("texts", [
    lambda number: (fillers(number), " ".join(fillers(number))),
    lambda number: (tuple(f"same-beginning-of-all-{index}" for index in range(number)),
                    " ".join(f"same-beginning-of-{index}" for index in range(number))),
    lambda number: (("ab\\+cd+ef++gh", "++++++++++"), "\\" * 30 * number),
    lambda number: (("ab\\+cd+ef++gh", *fillers(FEW)), "\\" * 30 * number),
    lambda number: (tuple("a" * (8 + index) for index in range(64)), "a" * 30 * number)])
def test_the_time_grows_with_the_length(texts: object) -> None:
    assert callable(texts)
    short, long = (min(seconds(*texts(number)) for _ in range(3)) for number in (500, 4000))
    assert long < 24 * short + 0.02, "eight times the length: 8 times the time if linear, 64 times if quadratic"


def test_800_secrets_of_33_kilobytes_take_milliseconds() -> None:
    keys = fillers(800)
    assert seconds(keys, " ".join(f"{key} and so on" for key in keys)) < 0.5
