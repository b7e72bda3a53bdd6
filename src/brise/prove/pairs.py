"""Pairs of answers: one request and the answers of the small and the large model to it; and which pairs count.

A pair counts if the large model answered, it was asked in the wanted time, and after the last change within it: a new
system prompt, other tools, or another version of the large model. What was shown before a change says nothing of what
comes after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brise.errors import EvidenceError
from brise.evals.example import EvalAnswer, EvalExample
from brise.files.digests import text_digest
from brise.stats.labels import JudgementSource
from brise.text import finish_reasons
from brise.text.protocols import Message

NO_CONTEXT = "none"  # the digest of a request that has neither system prompt nor tools


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answer, who gave it and how long that took. `id` is that of the answer in a store."""

    answer: EvalAnswer
    model: str | None = None
    fingerprint: str | None = None
    seconds: float | None = None
    id: str | None = None


@dataclass(frozen=True)
class Judgement:
    """Scores of both answers by a program, a person or a judge, each in [0, 1]."""

    label_source: JudgementSource
    small: float
    large: float
    again: float | None = None  # of the large model, asked again
    who: str = ""


@dataclass(frozen=True)
class Pair:
    """One request with both answers. Rows of one `cluster` (a conversation) are no independent observations.

    `place` says where it was found, `at_s` when it was asked. `context` is the digest of system prompt and tools.
    `again` is the large model's answer when it was asked the same once more. Unless the row `is_named`, nobody said
    which conversation it is of.
    """

    id: str
    place: str
    cluster: str
    small: ModelAnswer
    large: ModelAnswer
    again: ModelAnswer | None = None
    at_s: float | None = None
    prompt: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, object], ...] = ()
    reference: EvalAnswer | None = None
    context: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, object] = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    is_named: bool = True

    def example(self, reference: EvalAnswer) -> EvalExample:
        """The request as `brise eval` scores it, with this answer for the right one."""
        return EvalExample(self.prompt, reference, self.place, self.cluster, self.id, self.tools, meta=self.meta)


def read_evidence(path: Path) -> bytes:
    """A file that a proof stands on: pairs, verdicts or a certificate. EvidenceError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"cannot read {str(path)!r}: {error.strerror}") from None


def in_order(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs sorted by time, if all of them have one; else as they came. EvidenceError if only some have one."""
    timed = sum(pair.at_s is not None for pair in pairs)
    if 0 < timed < len(pairs):
        without = next(pair for pair in pairs if pair.at_s is None)
        raise EvidenceError(f"{timed} of {len(pairs)} pairs say when they were asked; {without.place} does not",
                            hint="the test goes through them in the order of time: give all a time, or none")
    return tuple(sorted(pairs, key=lambda pair: pair.at_s or 0.0))


def settled(pairs: Sequence[Pair], seconds: float, until_s: float) -> tuple[Pair, ...]:
    """The pairs that no later analysis will see otherwise: of each cluster the rows of its first `seconds`.

    Clusters that began later than that before `until_s` are left out whole: they may still grow.
    """
    began: dict[str, float] = {}
    for pair in pairs:
        if pair.at_s is not None:
            began[pair.cluster] = min(pair.at_s, began.get(pair.cluster, pair.at_s))
    return tuple(pair for pair in pairs if pair.at_s is not None and began[pair.cluster] + seconds <= until_s
                 and pair.at_s < began[pair.cluster] + seconds)


def digest_of_clusters(names: Sequence[str]) -> str:
    """The SHA-256 of the clusters' names in their order."""
    return text_digest("\n".join(names))


@dataclass(frozen=True)
class Change:
    """At `at_s`, before the pair at `place`, all that was in use of `what` was replaced by something else."""

    what: str
    at_s: float | None
    place: str
    number: int  # of pairs before it


@dataclass(frozen=True)
class MissingPair:
    """Both models answered, but what they said is not there: it might have counted, with any scores."""

    cluster: str
    at_s: float


@dataclass(frozen=True)
class Chosen:
    """The pairs in the order of time, what was left out and why, and the changes that were found. Of what was left out
    `missing` might have turned the verdict.
    """

    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[int, str], ...]
    changes: tuple[Change, ...]
    missing: tuple[MissingPair, ...] = ()


def choose(pairs: Sequence[Pair], since_s: float | None = None, until_s: float | None = None, *,
           any_context: bool = False) -> Chosen:
    """The pairs that count; EvidenceError if nothing is left."""
    answered = [pair for pair in pairs if not is_failed(pair.large.answer)]
    ordered = in_order(answered)
    within = tuple(pair for pair in ordered if _is_within(pair, since_s, until_s))
    left_out = [(len(pairs) - len(answered), "the large model gave no answer"),
                (len(ordered) - len(within), "outside of --since and --until")]
    if pairs and not answered:
        raise EvidenceError(f"in none of {len(pairs)} pairs did the large model answer")
    if not within:
        raise EvidenceError(f"none of {len(ordered)} pairs was asked between --since and --until")
    found = changes(within, any_context=any_context)
    if found:
        start = found[-1].number
        left_out.append((start, f"before the last change ({found[-1].what}); what was shown with another says nothing"))
        within = within[start:]
    return Chosen(within, tuple(item for item in left_out if item[0]), found)


def is_failed(answer: EvalAnswer) -> bool:
    """Whether an error stands in the answer's place, or ended it. Such an outage is no evidence for another model."""
    return answer.error is not None or finish_reasons.common(answer.finish) == "error"


def changes(pairs: Sequence[Pair], *, any_context: bool) -> tuple[Change, ...]:
    """Every point after which nothing from before it is seen again; `pairs` in the order of time.

    Two system prompts that are used in turn are no change; both are covered.
    """
    found = _cuts(pairs, "the large model", [large_model_of(pair) for pair in pairs])
    if not any_context:
        found += _cuts(pairs, "system prompt or tools", [pair.context for pair in pairs])
    return tuple(sorted(found, key=lambda change: change.number))


def large_model_of(pair: Pair) -> str:
    """Name and fingerprint of the large model, as far as they are known."""
    return " ".join(part for part in (pair.large.model, pair.large.fingerprint) if part)


def _is_within(pair: Pair, since_s: float | None, until_s: float | None) -> bool:
    if since_s is None and until_s is None:
        return True
    if pair.at_s is None:
        raise EvidenceError(f"{pair.place} has no time", hint="--since and --until need 'at' in every row of the log")
    return (since_s is None or pair.at_s >= since_s) and (until_s is None or pair.at_s < until_s)


def _cuts(pairs: Sequence[Pair], what: str, names: Sequence[str]) -> list[Change]:
    last = {name: at for at, name in enumerate(names)}
    found, end = list[Change](), -1
    for at, name in enumerate(names):
        if at > end and at:
            found.append(Change(what, pairs[at].at_s, pairs[at].place, at))
        end = max(end, last[name])
    return found
