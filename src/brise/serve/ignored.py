"""What was left out of a request is said in the answer: under `brise` in the body, and in headers.

Each dialect's body has the same object under `brise`: `ignored` are fields of the request, `not_enforced` keywords of
schemas that no grammar enforces, and `invalid` the places in the answer that break them. `held` and `refused` are calls
that the rules did not let through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from brise.engine.answer_collector import AnswerCollector
from brise.serve.call_guard import held_back
from brise.serve.generation import Entry
from brise.serve.unenforced import AnswerPlaces, Unenforced, invalid_places, not_enforced
from brise.text.fields import Ignored

IGNORED, NOT_ENFORCED = "x-brise-ignored", "x-brise-not-enforced"
MAX_HEADER = 256  # characters; clients refuse long lines


@dataclass(frozen=True)
class RequestReport:
    """What is said about a request whose answer is one message."""

    ignored: Ignored | None
    unenforced: Sequence[Unenforced]

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, which leave before the answer is there."""
        return ignored_header(self.ignored, self.unenforced)

    def of(self, answer: AnswerCollector, places: AnswerPlaces) -> Entry:
        """`brise` for the body of a whole answer, if there is something to say."""
        said = report(self.ignored, self.unenforced, invalid_places(answer, self.unenforced, places), (answer,))
        return {"brise": said} if said else {}


def report(ignored: Ignored | None, unenforced: Sequence[Unenforced] = (), invalid: Iterable[str] = (),
           answers: Sequence[AnswerCollector] = ()) -> Entry:
    """The object under `brise`, empty if everything was honoured."""
    said: Entry = {}
    if ignored is not None and ignored.reasons:
        said["ignored"] = dict(ignored.reasons)
    if unenforced:
        said["not_enforced"] = not_enforced(unenforced)
    if broken := list(invalid):
        said["invalid"] = broken
    return said | held_back(answers)


def ignored_header(ignored: Ignored | None, unenforced: Sequence[Unenforced] = ()) -> Mapping[str, str]:
    """The headers with the paths of fields and keywords."""
    headers = {}
    if ignored is not None and ignored.reasons:
        headers[IGNORED] = header_text(", ".join(ignored.reasons))
    if unenforced:
        headers[NOT_ENFORCED] = header_text(", ".join(not_enforced(unenforced)))
    return headers


def header_text(text: str) -> str:
    """Text that may stand in a header: printable ASCII, and cut."""
    shown = text.encode("ascii", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in shown)[:MAX_HEADER]
