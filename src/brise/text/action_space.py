"""An action space: what a robot can be told, as one token for each value.

A TOML file describes it:

    name = "drone"
    steps = 5            # of a chunk, which is one answer
    period_s = 0.1       # from one step to the next

    [values.vx]
    unit = "m/s"
    low = -3.0
    high = 3.0
    bins = 21            # evenly from low to high, both included
    max_change = 0.6     # from one step to the next; without it the value may jump
    brake = 0.0          # what "brake" commands; the default is 0, or the limit that is nearest to 0

    [values.gate]        # bins that are words: 0 is red, 1 is blue
    words = ["red", "blue"]

An answer has steps * values tokens, those of the first step first. Each is the token of one of its value's bins, so an
answer cannot be malformed. The token of a bin that is a word is that word's: a model can copy it from what it reads.
Limits and rates hold for what comes out of `Actions.commands`, whatever the model says.

Legend: H steps of a chunk, D values of a step.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brise.errors import CheckpointError, RequestError, UnsupportedError
from brise.files.digests import text_digest
from brise.files.fields import Fields, KeyTable, errors_of
from brise.files.json_file import parse_json
from brise.text.protocols import TextTokenizer

MAX_VALUES = 64
MAX_STEPS = 256
MAX_BINS = 256
MAX_TOKENS = 1024  # of a chunk
MAX_FILE_BYTES = 64 << 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ActionValue:
    """One number of a command, from `low` to `high` in `unit`; `max_change` is from one step to the next."""

    name: str
    low: float
    high: float
    bins: int
    unit: str = ""
    max_change: float | None = None
    brake: float = 0.0
    words: tuple[str, ...] = ()  # of the bins, if they are words

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise self._wrong("low", self.low, f"a number under 'high', which is {self.high}")
        if not 2 <= self.bins <= MAX_BINS:
            raise self._wrong("bins", self.bins, f"2 to {MAX_BINS}")
        if self.words and not len(set(self.words)) == len(self.words) == self.bins:
            raise self._wrong("words", list(self.words), f"{self.bins} different words, one for each bin")
        if self.max_change is not None and not 0 < self.max_change < math.inf:
            raise self._wrong("max_change", self.max_change, "a number over 0")
        if not self.low <= self.brake <= self.high:
            raise self._wrong("brake", self.brake, f"{self.low} to {self.high}")

    def _wrong(self, field: str, value: object, limit: str) -> CheckpointError:
        return CheckpointError(f"the action value {self.name!r} has {field} = {value}, allowed is {limit}",
                               field=field, value=value, limit=limit)


@dataclass(frozen=True)
class ActionSpace:
    """The values of a command, and how many steps of `period_s` seconds a chunk has."""

    name: str
    values: tuple[ActionValue, ...]
    steps: int = 1
    period_s: float = 0.1

    def __post_init__(self) -> None:
        names = [value.name for value in self.values]
        if not 1 <= len(names) <= MAX_VALUES or len(set(names)) != len(names):
            raise self._wrong("values", names, f"1 to {MAX_VALUES} values, each with a name of its own")
        if not (1 <= self.steps <= MAX_STEPS and self.num_tokens <= MAX_TOKENS):
            raise self._wrong("steps", self.steps, f"1 to {min(MAX_STEPS, MAX_TOKENS // len(names))} for {len(names)} "
                                                   "values")
        if not 0 < self.period_s <= 3600:
            raise self._wrong("period_s", self.period_s, "over 0, at most 3600")

    @property
    def num_tokens(self) -> int:
        """The tokens of a chunk."""
        return self.steps * len(self.values)

    @property
    def most_bins(self) -> int:
        """The bins of the value with the most: so many tokens are needed, since all values without words share them.
        """
        return max((value.bins for value in self.values if not value.words), default=0)

    @property
    def digest(self) -> str:
        """The SHA-256 of what the space says."""
        return text_digest(self.as_json())

    def as_json(self) -> str:
        """The space as canonical JSON; `parse_action_space` reads it."""
        values = {value.name: {key: item for key, item in asdict(value).items()
                               if key != "name" and item not in (None, ())}
                  for value in self.values}  # in their order, which says what the tokens of an answer mean
        return json.dumps({"name": self.name, "steps": self.steps, "period_s": self.period_s, "values": values},
                          separators=(",", ":"), allow_nan=False)

    def as_toml(self) -> str:
        """The space as a file; `read_action_space` reads it."""
        lines = [f"name = {json.dumps(self.name)}", f"steps = {self.steps}", f"period_s = {self.period_s}"]
        for value in self.values:
            lines += ["", f"[values.{value.name if value.name.isidentifier() else json.dumps(value.name)}]", *(
                f"{key} = {json.dumps(item)}" for key, item in asdict(value).items()
                if key != "name" and item not in ("", None, ()))]
        return "\n".join(lines) + "\n"

    def bins_of(self, commands_HD: ArrayLike) -> NDArray[np.int64]:
        """The nearest bins of commands, (H, D); RequestError for another shape or a number that is not finite."""
        commands = np.asarray(commands_HD, np.float64)
        if commands.shape != (self.steps, len(self.values)) or not np.isfinite(commands).all():
            raise RequestError(f"actions have the shape {commands.shape}, {self.name} takes "
                               f"{(self.steps, len(self.values))} finite numbers (steps, values)", param="actions")
        low_D, width_D = self._low(), self._widths()
        last_D = np.array([value.bins - 1 for value in self.values])
        return np.clip(np.rint((commands - low_D) / width_D), 0, last_D).astype(np.int64)

    def centers(self, bins: ArrayLike) -> Floats:
        """The numbers of bins, (..., D); always within the limits."""
        numbers = self._low() + np.asarray(bins, np.float64) * self._widths()
        return np.clip(numbers, self._low(), self._high())  # the last one may be over by a rounding

    def limited(self, command_D: ArrayLike, last_D: ArrayLike | None) -> Floats:
        """A command within the limits, and no further from the last one that was sent than its rates allow.

        None: nothing was sent yet, so no rate holds. A number that is not finite stays at the last one, or brakes.
        """
        command = np.asarray(command_D, np.float64)
        stay = self.brake if last_D is None else np.asarray(last_D, np.float64)
        command = np.clip(np.where(np.isfinite(command), command, stay), self._low(), self._high())
        return np.clip(command, *self.reachable(last_D))

    def reachable(self, last_D: ArrayLike | None) -> tuple[Floats, Floats]:
        """The least and the most that a next command may be, (D,) each: by the limits, and by the rates after the last.
        """
        low, high = self._low(), self._high()
        if last_D is None:
            return low, high
        rates = np.array([math.inf if value.max_change is None else value.max_change for value in self.values])
        before = np.clip(np.asarray(last_D, np.float64), low, high)
        return np.maximum(before - rates, low), np.minimum(before + rates, high)

    @property
    def brake(self) -> Floats:
        """The command that brakes, (D,)."""
        return np.array([value.brake for value in self.values])

    def _low(self) -> Floats:
        return np.array([value.low for value in self.values])

    def _high(self) -> Floats:
        return np.array([value.high for value in self.values])

    def _widths(self) -> Floats:
        return np.array([(value.high - value.low) / (value.bins - 1) for value in self.values])

    def _wrong(self, field: str, value: object, limit: str) -> CheckpointError:
        return CheckpointError(f"the action space {self.name!r} has {field} = {value}, allowed is {limit}",
                               field=field, value=value, limit=limit)


@dataclass(frozen=True)
class Actions:
    """An action space with the tokens of its bins: token `tokens[b]` means bin b of whatever value it stands for.

    Values whose bins are words have tokens of their own in `words`, one tuple for each, in the order of the values.
    """

    space: ActionSpace
    tokens: tuple[int, ...]
    words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.tokens) < self.space.most_bins or len(set(self.tokens)) != len(self.tokens):
            raise CheckpointError(f"the action space {self.space.name!r} has {len(set(self.tokens))} different tokens "
                                  f"for {self.space.most_bins} bins", field="action_tokens", value=len(self.tokens),
                                  limit=self.space.most_bins)
        sizes = [value.bins for value in self.space.values if value.words]
        if [len(set(own)) for own in self.words] != sizes:
            raise CheckpointError(f"the action space {self.space.name!r} has {[len(set(own)) for own in self.words]} "
                                  f"different tokens for values of {sizes} words", field="action_words")

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """The tokens that are allowed at each place of an answer."""
        return self._bins * self.space.steps

    @property
    def _bins(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each value's bins."""
        words = iter(self.words)
        return tuple(next(words) if value.words else self.tokens[:value.bins] for value in self.space.values)

    def encode(self, commands_HD: ArrayLike) -> list[int]:
        """The tokens of a chunk of commands, (H, D)."""
        own = self._bins
        return [own[at][each] for step in self.space.bins_of(commands_HD).tolist() for at, each in enumerate(step)]

    def decode(self, tokens: Sequence[int]) -> Floats:
        """The commands of an answer, (steps, D): those of its whole steps, if it was ended before the last.

        RequestError for a token that none of its value's bins has, which a constrained answer never holds.
        """
        width = len(self.space.values)
        places = [{token: number for number, token in enumerate(own)} for own in self._bins]
        whole = tokens[:len(tokens) // width * width]
        bins = [places[at % width].get(token, MAX_BINS) for at, token in enumerate(whole)]
        for at, (number, token) in enumerate(zip(bins, whole, strict=True)):
            if number == MAX_BINS or at >= self.space.num_tokens:
                raise RequestError(f"token {token} at place {at} is no action of {self.space.name}", param="actions")
        return self.space.centers(np.array(bins, np.int64).reshape(-1, width))

    def commands(self, tokens: Sequence[int], last_D: ArrayLike | None) -> Floats:
        """The commands of an answer, limited one after the other from the last one that was sent, (steps, D)."""
        rows, before = [], last_D
        for command in self.decode(tokens):
            before = self.space.limited(command, before)
            rows.append(before)
        return np.array(rows).reshape(-1, len(self.space.values))

    def settings(self) -> Mapping[str, str]:
        """What an adapter's lineage says of the actions that it was trained on; `from_settings` reads it."""
        own = {"action_words": "; ".join(" ".join(map(str, tokens)) for tokens in self.words)} if self.words else {}
        return {"action_space": self.space.as_json(), "action_tokens": " ".join(map(str, self.tokens)), **own}


def read_action_space(path: Path) -> ActionSpace:
    """The action space in a TOML file; CheckpointError names what is wrong in it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: the file has over {MAX_FILE_BYTES} bytes, which no action space needs")
        value = tomllib.loads(data.decode())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="docs/guides/robots.md describes the file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: this is no TOML: {error}",
                              hint="docs/guides/robots.md describes the file") from error
    return _space(value, path.name)


def parse_action_space(text: str) -> ActionSpace:
    """The action space that `ActionSpace.as_json` wrote."""
    return _space(parse_json(text.encode(), "action_space"), "action_space")


def from_settings(settings: Mapping[str, object]) -> Actions | None:
    """The actions that an adapter was trained on, of its lineage's settings; None if it was not trained on any."""
    space, tokens = settings.get("action_space"), settings.get("action_tokens")
    if space is None and tokens is None:
        return None
    words = settings.get("action_words", "")
    if not (isinstance(space, str) and isinstance(tokens, str) and isinstance(words, str)
            and all(map(str.isdecimal, (*tokens.split(), *words.replace(";", " ").split())))):
        raise CheckpointError("the lineage names an action space without its tokens, or tokens that are no numbers",
                              field="action_tokens", value=tokens)
    own = tuple(tuple(map(int, each.split())) for each in words.split(";")) if words else ()
    return Actions(parse_action_space(space), tuple(map(int, tokens.split())), own)


def with_rarest_tokens(space: ActionSpace, tokenizer: TextTokenizer) -> Actions:
    """The space with the tokens that texts have least use for: a BPE vocabulary ends with its rarest merges.

    A bin that is a word has the word's token, or one of the rarest, too, if the vocabulary has several for it.
    """
    tokens = tuple(islice(_rarest(tokenizer), space.most_bins))
    words = tuple(_with_rarest([_token_of(word, tokenizer) for word in value.words], tokenizer)
                  for value in space.values if value.words)
    if len(tokens) < space.most_bins or not all(len(own) == value.bins for own, value in
                                                zip(words, (each for each in space.values if each.words), strict=True)):
        raise UnsupportedError(f"the vocabulary has too few tokens for the {space.most_bins} bins of {space.name}")
    return Actions(space, tokens, words)


def _rarest(tokenizer: TextTokenizer) -> Iterator[int]:
    """The tokens of texts, the rarest first."""
    return (token for token in range(tokenizer.vocab_size - 1, -1, -1) if not tokenizer.is_control(token)
            and token not in tokenizer.end_ids and len(tokenizer.token_bytes(token)) > 1)


def _token_of(word: str, tokenizer: TextTokenizer) -> int | None:
    """The token of a word within a text, if it is one."""
    tokens = min((tokenizer.encode(text) for text in (f" {word}", word)), key=len)  # some tokenizers add the space
    return tokens[0] if len(tokens) == 1 else None


def _with_rarest(tokens: Sequence[int | None], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The tokens, with rare ones where there is none."""
    rarest = (token for token in _rarest(tokenizer) if token not in tokens)
    return tuple(each for each in (next(rarest, None) if token is None else token for token in tokens)
                 if each is not None)


def require_same(trained: Actions, wanted: ActionSpace) -> None:
    """Raises UnsupportedError if an adapter was trained on another space than the one that is wanted."""
    if trained.space != wanted:
        raise UnsupportedError(f"the adapter was trained on the action space {trained.space.name!r} "
                               f"({trained.space.digest[:12]}), asked for is {wanted.name!r} ({wanted.digest[:12]})",
                               hint="give the file that it was trained with, or train with this one")


def _space(value: Mapping[str, object], name: str) -> ActionSpace:
    with errors_of(name):
        fields = Fields(value, "")
        values = fields.section("values")
        space = ActionSpace(fields.text("name"), tuple(_value(each, values.section(each)) for each in values.names()),
                            fields.integer("steps", default=1), fields.number("period_s", default=0.1))
        fields.refuse_rest(KeyTable())
    return space


def _value(name: str, fields: Fields) -> ActionValue:
    words = tuple(fields.strings("words")) if fields.has("words") else ()
    is_range = not words or fields.has("low") or fields.has("high")
    low, high = (_number(fields, "low"), _number(fields, "high")) if is_range else (0.0, len(words) - 1.0)
    nearest = min(max(0.0, low), high)
    bins = fields.integer("bins") if not words or fields.has("bins") else len(words)
    value = ActionValue(name, low, high, bins, fields.text("unit", default=""),
                        fields.number("max_change") if fields.has("max_change") else None,
                        _number(fields, "brake") if fields.has("brake") else nearest, words)
    fields.refuse_rest(KeyTable())
    return value


def _number(fields: Fields, name: str) -> float:
    """A number of either sign."""
    value = fields.value(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise fields.wrong(name, "a finite number")
    return float(value)
