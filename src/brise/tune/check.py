"""What is wrong with data that reads well: rows that repeat, and rows held out that were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brise.text.conversation import plain_text
from brise.tune import identity
from brise.tune.example import Example
from brise.tune.near import near_duplicates
from brise.tune.split import Split

NUM_SHOWN = 5
Places = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Repeats:
    """How many examples repeat an earlier one: all of it, its prompt with another answer, or nearly its prompt.

    The places are of some of them, the earlier one first.
    """

    num_same: int
    num_contrary: int
    num_near: int
    same: Places
    contrary: Places
    near: Places


@dataclass(frozen=True)
class Leakage:
    """How many examples held out have a prompt that is trained on, a conversation, or nearly a prompt.

    Each is counted once, for the first that holds. The places are of some of the first two kinds.
    """

    same_prompt: int = 0
    same_conversation: int = 0
    near_prompt: int = 0
    places: Places = ()

    @property
    def is_certain(self) -> bool:
        """Whether anything held out was trained on; a near prompt may be another question."""
        return self.same_prompt + self.same_conversation > 0


def inspect(examples: Sequence[Example], split: Split) -> tuple[Repeats, Leakage]:
    """Looks through both sides."""
    used = sorted({*split.train, *split.held_out})
    pairs = near_duplicates([_asked(examples[index]) for index in used])
    near = [(used[first], used[second]) for first, second in pairs.tolist()]
    return _repeats(examples, used, near), _leakage(examples, split, near)


def _repeats(examples: Sequence[Example], used: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Repeats:
    whole: dict[bytes, int] = {}
    prompts: dict[bytes, int] = {}
    same: dict[int, int] = {}
    contrary: dict[int, int] = {}
    for index in used:
        first = whole.setdefault(identity.whole(examples[index]), index)
        asked = prompts.setdefault(identity.prompt(examples[index]), index)
        if first != index:
            same[index] = first
        elif asked != index:
            contrary[index] = asked
    near = {later: earlier for earlier, later in reversed(pairs) if later not in same and later not in contrary}
    return Repeats(len(same), len(contrary), len(near), *(_places(examples, found) for found in (same, contrary, near)))


def _leakage(examples: Sequence[Example], split: Split, pairs: Sequence[tuple[int, int]]) -> Leakage:
    prompts = {identity.prompt(examples[index]): index for index in reversed(split.train)}
    names = {_name(examples[index]): index for index in reversed(split.train)}
    same_prompt: dict[int, int] = {}
    same_conversation: dict[int, int] = {}
    for index in split.held_out:
        prompt, name = identity.prompt(examples[index]), _name(examples[index])
        if prompt in prompts:
            same_prompt[index] = prompts[prompt]
        elif name in names:
            same_conversation[index] = names[name]
    certain = same_prompt | same_conversation
    train, held_out = set(split.train), set(split.held_out)
    near = {one for pair in pairs for one, other in (pair, pair[::-1])
            if one in held_out and one not in certain and other in train}
    return Leakage(len(same_prompt), len(same_conversation), len(near), _places(examples, certain))


def _name(example: Example) -> object:
    """What tells the example's conversation: its name, or if it has none its first question and answer."""
    return identity.opening(example) if identity.is_derived(example.conversation) else example.conversation


def _asked(example: Example) -> str:
    """What stands before the last answer, without the system prompt that all rows share."""
    messages = [message for message in example.messages[:-1] if message["role"] != "system"]
    return "\n".join(plain_text(message["content"]) + (identity.canonical(message["tool_calls"])
                                                       if message.get("tool_calls") else "") for message in messages)


def _places(examples: Sequence[Example], found: dict[int, int]) -> Places:
    return tuple((examples[other].place, examples[index].place) for index, other in sorted(found.items())[:NUM_SHOWN])
