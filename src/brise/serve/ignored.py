"""What was left out of a request is said in the answer: under `brise` in the body, and in headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from brise.engine.answer_collector import AnswerCollector
from brise.serve.generation import Entry
from brise.serve.prompts import Unenforced
from brise.text.fields import Ignored
from brise.text.schemas import violations

IGNORED, NOT_ENFORCED = "x-brise-ignored", "x-brise-not-enforced"
MAX_HEADER = 256  # characters; clients refuse long lines


def report(ignored: Ignored | None, unenforced: Sequence[Unenforced] = (),
           answers: Sequence[AnswerCollector] = ()) -> Entry:
    """The object under `brise`, empty if everything was honoured.

    `not_enforced` names the keywords of schemas that no grammar enforces, `invalid` the places in the answers that
    break them: a pattern is not tried.
    """
    said: Entry = {}
    if ignored is not None and ignored.reasons:
        said["ignored"] = dict(ignored.reasons)
    if unenforced:
        said["not_enforced"] = _not_enforced(unenforced)
    invalid = [f"choices[{index}].message.{place}" for index, answer in enumerate(answers) if answer.finish != "length"
               for schema in unenforced for place in _invalid(answer, schema)]
    if invalid:
        said["invalid"] = invalid
    return said


def ignored_header(ignored: Ignored | None, unenforced: Sequence[Unenforced] = ()) -> Mapping[str, str]:
    """The headers with the paths of fields and keywords."""
    headers = {}
    if ignored is not None and ignored.reasons:
        headers[IGNORED] = header_text(", ".join(ignored.reasons))
    if unenforced:
        headers[NOT_ENFORCED] = header_text(", ".join(_not_enforced(unenforced)))
    return headers


def _not_enforced(unenforced: Sequence[Unenforced]) -> list[str]:
    return [f"{each.param}.{place}" for each in unenforced for place in each.left_out][:64]


def _invalid(answer: AnswerCollector, schema: Unenforced) -> Iterator[str]:
    texts = [("content", answer.text)] if schema.function is None and not answer.calls else [
        (f"tool_calls[{index}].function.arguments", call.arguments) for index, call in enumerate(answer.calls)
        if call.name == schema.function]
    for place, text in texts:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            yield f"{place}: no JSON"
            continue
        yield from (f"{place}: {each}" for each in violations(value, schema.schema, schema.left_out))


def header_text(text: str) -> str:
    """Text that may stand in a header: printable ASCII, and cut."""
    shown = text.encode("ascii", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in shown)[:MAX_HEADER]
