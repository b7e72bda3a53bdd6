"""Scrubs secrets and personal data from what leaves this machine: [EMAIL_1], [KEY_2] and so on stand in their place.

The same value gets the same placeholder throughout one export, so that a text still says who wrote to whom. What is
found has a form of its own: keys and tokens of known makers, private keys, passwords that are called so, e-mail
addresses, telephone numbers, payment cards (Luhn's digit), IBANs (remainder 1 by 97) and IP addresses. Names and
streets have none, and stay.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PLAIN_IPS = ("0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1")  # they belong to no person and no machine
_IMAGE = re.compile(r"data:[\w.+/-]{1,80}(?:;[\w.+=-]{1,80}){0,4};base64,[A-Za-z0-9+/_-]*={0,2}")  # as a URL
# Names that end in one of these words: client_secret and dbPassword among them.
_SECRET_NAME = (
    r"(?i:[\w.-]{0,40}?(?:secret|passw(?:or)?d|passwd|pwd|passphrase|passcode|token|credentials?"
    r"|(?:api|access|secret|private|account|shared|subscription|auth|encryption|signing|master|license)[_-]?key))")
_LEAST_PASSWORD, _MOST_PASSWORD = 8, 256  # characters
_LONG = 20  # characters of a password that may have no digit
_LEAST_CARD = 10**11  # the least number with as many digits as a card
_SEPARATORS = str.maketrans("", "", " -.()/\u00a0")


@dataclass(frozen=True)
class _Pattern:
    """The form of one kind. Group 1, if there is one, is what is replaced; `is_real` checks it."""

    kind: str
    form: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda text: True


def _is_card(text: str) -> bool:
    digits = text.translate(_SEPARATORS)
    if not 12 <= len(digits) <= 19 or len(set(digits)) == 1:  # 12: Maestro
        return False
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0


def _is_iban(text: str) -> bool:
    account = text.replace(" ", "").upper()
    if not 15 <= len(account) <= 34:
        return False
    turned = account[4:] + account[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _is_ip(text: str) -> bool:
    try:
        return str(ipaddress.ip_address(text)) not in _PLAIN_IPS
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    digits = [letter for letter in text if letter.isdigit()]
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


def _is_password(text: str) -> bool:
    """Letters and digits mixed, or long and of both cases: `password: required` and `api_key=<your key 1>` give nothing
    away.
    """
    is_long = len(text) >= _LONG and any(map(str.isupper, text)) and any(map(str.islower, text))
    has_both = any(map(str.isalpha, text)) and any(map(str.isdigit, text))
    return (has_both or is_long) and text[0] not in "<${[("


def _is_secret(name: str, value: object) -> bool:
    """Whether a field's name says that its value is one."""
    return (isinstance(value, str) and _LEAST_PASSWORD <= len(value) <= _MOST_PASSWORD and " " not in value
            and _is_password(value) and re.fullmatch(_SECRET_NAME, name) is not None)


# In this order: what an earlier pattern replaced is not matched again.
_PATTERNS: Sequence[_Pattern] = (
    _Pattern("PRIVATE_KEY", re.compile(
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?"
        r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)", re.DOTALL)),
    _Pattern("KEY", re.compile(
        r"(?<![\w-])(?:"
        # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse and those who took it over
        r"(?:sk|csk)-[A-Za-z0-9_-]{20,}|pcsk_[A-Za-z0-9_-]{20,}"
        # xAI, Perplexity, NVIDIA, Tavily; Groq, Hugging Face, Replicate, Fireworks, Together, Jina, LangSmith, Supabase
        r"|(?:xai|pplx|nvapi|tvly)-[A-Za-z0-9_-]{20,}"
        r"|(?:gsk|hf|api_org|r8|fw|tgp_v1|jina|lsv2_[ps][tk]|sbp|sb_secret|esecret)_[A-Za-z0-9_-]{20,}"
        r"|(?:AKIA|ASIA|AROA|AIDA|ABIA)[0-9A-Z]{16}"  # Amazon
        # GitHub, GitLab
        r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}|gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[\w-]{20,}"
        r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
        r"|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,}|GOCSPX-[0-9A-Za-z_-]{20,}"  # Google
        r"|(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,}|whsec_[0-9A-Za-z+/]{24,}"  # Stripe
        r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,}|rubygems_[0-9a-f]{40,}|dckr_(?:pat|oat)_[\w-]{20,}"
        r"|SG\.[\w-]{16,}\.[\w-]{16,}|SK[0-9a-f]{32}|key-[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2}"  # mail and telephone
        r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dapi[0-9a-f]{32}(?:-\d{1,3})?"  # Shopify, Databricks
        r"|do[opr]_v1_[0-9a-f]{40,}|sq0(?:atp|csp)-[\w-]{20,}|pat-[a-z]{2}\d-[0-9a-f-]{36}|hv[sbr]\.[\w-]{20,}"
        r"|ntn_[A-Za-z0-9]{40,}|lin_api_[A-Za-z0-9]{30,}|figd_[\w-]{30,}|ph[cx]_[A-Za-z0-9]{30,}"
        r"|\d{8,10}:[A-Za-z0-9_-]{35}"  # Telegram
        r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"  # JSON Web Token
        r")(?![\w-])")),
    _Pattern("KEY", re.compile(r"(?i:\bbearer|\bbasic)[ \t]+([A-Za-z0-9._~+/-]{20,}=*)")),
    _Pattern("PASSWORD", re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,128}:([^\s/@]{1,256})@")),
    _Pattern("PASSWORD", re.compile(  # NAME=VALUE, also in JSON that is escaped in text
        rf"(?<![\w.-])(?:{_SECRET_NAME})\\?[\"']?[ \t]{{0,3}}(?:[:=]=?|=>)[ \t]{{0,3}}\\?[\"']?"
        r"([^\s\"',;\[\]\\]{8,256})"), _is_password),
    _Pattern("EMAIL", re.compile(
        r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")),
    _Pattern("IBAN", re.compile(
        r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,4})?(?!\w)"), _is_iban),
    _Pattern("CARD", re.compile(r"(?<![\w.+-])(?:[2-6]\d{3}|1800)(?:[ -]?\d){8,15}(?![\w-])"), _is_card),
    _Pattern("IP", re.compile(r"(?<![\w.:])\d{1,3}(?:\.\d{1,3}){3}(?![\w:]|\.\d)"), _is_ip),
    _Pattern("IP", re.compile(r"(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w.:])"), _is_ip),
    _Pattern("PHONE", re.compile(
        r"(?<![\w+])(?:\+|00)\d{1,3}(?:[ .()/\u00a0-]{0,3}\d){6,12}(?:x\d{1,6})?(?!\w)"), _is_phone),
    _Pattern("PHONE", re.compile(  # within a country: in brackets, behind a nought, or 3-3-4 as in North America
        r"(?<![\w./+-])(?<!\d,)(?:\(0?\d{2,4}\)[ -]?\d{3,4}[ -]?\d{3,4}"
        r"|0\d{1,4}(?:[ /-]\d{2,4}(?:[ -]?\d{2,4}){1,3}|(?:\.\d{2}){4})|[2-9]\d{2}([-. ])\d{3}\1\d{4})"
        r"(?:x\d{1,6})?(?!\w|-\d)"), _is_phone))


class Scrubber:
    """Scrubs one export. `counts` says what was replaced how often."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._names: dict[tuple[str, str], str] = {}
        self._numbers = Counter[str]()

    def scrub(self, value: Any) -> Any:
        """A JSON value with every string in it scrubbed, and the names of fields."""
        match value:
            case str():
                return self._string(value)
            case Mapping():
                return {self._string(name): self._placeholder("PASSWORD", item) if _is_secret(name, item) else
                        self.scrub(item) for name, item in value.items()}
            case list() | tuple():
                return [self.scrub(item) for item in value]
            case int() if abs(value) >= _LEAST_CARD and not isinstance(value, bool):
                scrubbed = self._string(str(value))
                return value if scrubbed == str(value) else scrubbed
            case _:
                return value

    def _string(self, text: str) -> str:
        if _IMAGE.fullmatch(text):  # it holds no text, but by chance looks like everything else
            return text
        if text.lstrip()[:1] in ("{", "["):  # JSON within JSON: arguments of calls, results of tools, escaped in it
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                pass
            else:
                scrubbed = self.scrub(inner)
                return text if scrubbed == inner else json.dumps(scrubbed, ensure_ascii=False)
        for pattern in _PATTERNS:
            text = "".join(self._pieces(pattern, text))
        return text

    def _pieces(self, pattern: _Pattern, text: str) -> Iterator[str]:
        at = 0
        for match_ in pattern.form.finditer(text):
            group = 1 if pattern.kind in ("KEY", "PASSWORD") and pattern.form.groups else 0
            if pattern.is_real(match_[group]):
                yield text[at:match_.start(group)]
                yield self._placeholder(pattern.kind, match_[group])
                at = match_.end(group)
        yield text[at:]

    def _placeholder(self, kind: str, value: str) -> str:
        """One placeholder for one value, however it is spaced."""
        same = value.translate(_SEPARATORS) if kind in ("CARD", "IBAN", "PHONE") else value
        key = (kind, same.lower() if kind in ("EMAIL", "IP") else same)
        if key not in self._names:
            self._numbers[kind] += 1
            self._names[key] = f"[{kind}_{self._numbers[kind]}]"
        self.counts[kind] += 1
        return self._names[key]
