"""What a model was trained on proves nothing about it: such rows are looked for, and refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from brise.checkpoint.adapters import lineage
from brise.data import identity
from brise.errors import EvidenceError
from brise.evals.example import EvalExample
from brise.prove.pairs import Pair
from brise.text.protocols import Message


def require_none_trained_on(pairs: Sequence[Pair], train: Sequence[EvalExample]) -> list[str]:
    """EvidenceError if a pair is of a conversation that is among these rows, or asks the same as one of them.

    Users do ask the same again. So where all pairs say when they were asked, the same question is no error but a note.
    """
    asked = {_asked(example.prompt) for example in train}
    conversations = {example.conversation for example in train if not identity.is_derived(example.conversation)}
    known = [pair for pair in pairs if pair.unit in conversations]
    again = [pair for pair in pairs if pair.prompt and _asked(pair.prompt) in asked]
    found = known or ([] if all(pair.at_s is not None for pair in pairs) else again)
    if found:
        raise EvidenceError(f"{len(found)} of {len(pairs)} pairs are of what the small model was trained on; the first "
                            f"is {found[0].place}", hint="prove on what was asked after its training data were drawn")
    return [f"{len(again)} of {len(pairs)} pairs ask, word for word, what the training data ask"] if again else []


def require_newer_than(pairs: Sequence[Pair], adapter: Path) -> None:
    """EvidenceError if a pair was asked before the adapter was made: it may have learned from it."""
    known = lineage.read_lineage(adapter)
    if known is None:
        return
    made_s = datetime.fromisoformat(known.created).timestamp()
    older = [pair for pair in pairs if pair.at_s is not None and pair.at_s < made_s]
    if older:
        raise EvidenceError(f"{len(older)} of {len(pairs)} pairs were asked before the adapter {adapter.name!r} was "
                            f"made ({known.created}), and may have been learned from",
                            hint=f"--since {known.created}")


def _asked(prompt: Sequence[Message]) -> str:
    return identity.canonical([{"role": message["role"], "content": message.get("content")} for message in prompt
                               if message["role"] not in ("system", "developer")])
