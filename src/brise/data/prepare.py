"""Preparing data for training: files are read, checked, split and rendered, with a report and a digest.

Nothing is trained until every row has been checked, and no row is cut or dropped silently.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brise.data.check import Leakage, inspect
from brise.data.example import EncodedRow, TrainingExample
from brise.data.parse_row import RowRules
from brise.data.read_rows import BadRow, BadRowsError, Columns, FileRows, read_rows, reason
from brise.data.render import Targets, rows_of
from brise.data.report import DataReport, Histogram, SplitCounts
from brise.data.rights import Rights, Used
from brise.data.split import Split, split
from brise.data.system_prompts import PromptSavings, absorbed, saved
from brise.errors import EvidenceError, RequestError
from brise.text.action_space import Actions, ActionSpace, with_rarest_tokens
from brise.text.images import Settings
from brise.text.load import Tokens


@dataclass(frozen=True)
class DataOptions:
    """How data become rows.

    `conversation`: fields that identify a conversation, such as "meta.seed". `provider` wrote the answers of rows that
    name none. `held_out_share` of the conversations is held out, or `held_out_count` examples, or the files
    `held_out`. An example of more than `max_tokens` is left out, or refused; None is the model's context.
    `absorb_system`: True trains without the system prompt, a text with this one instead. `as_text`: prompt and
    completion are one text without a chat format. `actions` says what the rows' actions mean.
    """

    seed: int = 0
    columns: Columns = Columns()
    conversation: tuple[str, ...] = ()
    provider: str | None = None
    rights: Rights = Rights()
    skip_bad: bool = False
    held_out_share: float = 0.1
    held_out_count: int | None = None
    held_out: tuple[Path, ...] = ()
    allow_leakage: bool = False
    max_tokens: int | None = None
    too_long: Literal["leave_out", "refuse"] = "leave_out"
    targets: Targets = "assistant"
    absorb_system: bool | str = False
    as_text: bool = False
    actions: ActionSpace | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise EvidenceError(f"a share of {self.held_out_share:g} is to be held out; allowed is 0 to below 1")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise EvidenceError(f"rows may have {self.max_tokens} tokens; at least 2 make one")
        if self.as_text and self.absorb_system is not False:
            raise EvidenceError("rows as text have no system prompt that could be absorbed")
        if self.as_text and self.actions is not None:
            raise EvidenceError("rows as text have no actions")


@dataclass(frozen=True)
class Dataset:
    """Training rows and held-out rows; examples that gave no row are in neither.

    `digest` is the SHA-256 of all rows, in order: equal digests give equal training.
    """

    train: tuple[EncodedRow, ...]
    held_out: tuple[EncodedRow, ...]
    train_examples: tuple[TrainingExample, ...]
    held_out_examples: tuple[TrainingExample, ...]
    report: DataReport
    digest: str
    rights: tuple[Used, ...] = ()


def prepare(paths: Sequence[Path], tokens: Tokens, options: DataOptions, *, images: Settings | None = None,
            today: Callable[[], datetime.date] = datetime.date.today) -> Dataset:
    """Reads the files for this tokenizer and chat format; `images` are the settings of the model's vision encoder.

    A base model, which has no chat format, is trained on text. EvidenceError says why the data cannot be used.
    """
    as_text = options.as_text or tokens.chat is None
    rules = RowRules(options.conversation, options.provider, images, as_text, actions_of(options, tokens))
    read = read_rows(paths, rules, options.columns)
    num_own = len(read.examples)
    if options.held_out:
        _append(read, read_rows(options.held_out, rules, options.columns))
    num_rows = read.number
    examples = _as_trained(read.examples, options)
    rendered = _rendered(examples, tokens, options.targets, as_text, read.bad)
    files = list(read.files)
    read.bad.sort(key=lambda row: _position(row, files))
    if read.bad and not options.skip_bad:
        raise BadRowsError(read.bad, num_rows)
    if not examples:
        raise EvidenceError("\n".join(["no row is left to train on", *read.left_out.lines()]))
    too_long = _take_long(rendered, options)
    sides = _sides(examples, rendered, num_own, options, too_long)
    repeats, leakage = inspect(examples, sides)
    _refuse_leakage(leakage, options)
    used = [*sides.train, *sides.held_out]
    providers = Counter(provider for index in used if (provider := examples[index].provider) is not None)
    rights = options.rights.used(providers, today())
    train, held_out = (tuple(row for index in side for row in rendered[index])
                       for side in (sides.train, sides.held_out))
    conversations = Counter(examples[index].conversation for index in used)
    report = DataReport(
        read.files, tuple(read.passed_over), num_rows, tuple(read.bad), tuple(too_long), len(sides.left_out),
        SplitCounts.of(len(sides.train), train), SplitCounts.of(len(sides.held_out), held_out),
        Histogram.of([len(row.tokens) for row in (*train, *held_out)]), len(conversations),
        max(conversations.values()), repeats, leakage, rights,
        _saved(read.examples, examples, used, tokens, options), read.left_out)
    return Dataset(train, held_out, tuple(examples[index] for index in sides.train),
                   tuple(examples[index] for index in sides.held_out), report, _digest(train, held_out), rights)


def actions_of(options: DataOptions, tokens: Tokens) -> Actions | None:
    """The action space of the rows with its tokens in this vocabulary; None for rows without actions."""
    return None if options.actions is None else with_rarest_tokens(options.actions, tokens.tokenizer)


def _position(row: BadRow, files: Sequence[str]) -> tuple[int, int]:
    path, _, line = row.place.rpartition(":")
    return files.index(path), int(line)


def _append(rows: FileRows, others: FileRows) -> None:
    double = rows.files.keys() & others.files.keys()
    if double:
        raise EvidenceError(f"{min(double)!r} is both trained on and held out")
    rows.examples += others.examples
    rows.bad += others.bad
    rows.left_out.update(others.left_out)
    rows.files |= others.files
    rows.passed_over += others.passed_over


def _as_trained(examples: Sequence[TrainingExample], options: DataOptions) -> list[TrainingExample]:
    if options.absorb_system is False:
        return list(examples)
    replacement = options.absorb_system if isinstance(options.absorb_system, str) else None
    return [absorbed(example, replacement) for example in examples]


def _rendered(examples: Sequence[TrainingExample], tokens: Tokens, targets: Targets, as_text: bool,
              bad: list[BadRow]) -> list[tuple[EncodedRow, ...]]:
    """The rows of each example; what the chat format refuses gives none, and is added to `bad`."""
    out: list[tuple[EncodedRow, ...]] = []
    for example in examples:
        try:
            out.append(rows_of(example, tokens, targets=targets, as_text=as_text))
        except RequestError as error:
            bad.append(BadRow(example.place, reason(error)))
            out.append(())
    return out


def _take_long(rendered: list[tuple[EncodedRow, ...]], options: DataOptions) -> list[BadRow]:
    """Removes the examples that have a row longer than allowed, and returns them."""
    limit = options.max_tokens
    if limit is None:
        return []
    long: list[BadRow] = []
    for index, rows in enumerate(rendered):
        longest = max((len(row.tokens) for row in rows), default=0)
        if longest > limit:
            long.append(BadRow(rows[0].place, f"has {longest} tokens, allowed are {limit}"))
            rendered[index] = ()
    if long and options.too_long == "refuse":
        raise BadRowsError(long, len(rendered), "shorten them, allow longer rows, or have them left out")
    return long


def _sides(examples: Sequence[TrainingExample], rendered: Sequence[tuple[EncodedRow, ...]], num_own: int,
           options: DataOptions, too_long: Sequence[BadRow]) -> Split:
    """The split of the examples that gave rows. Those that are too long take part, so that limits do not move it."""
    if options.held_out:
        sides = Split(tuple(range(num_own)), tuple(range(num_own, len(examples))))
    else:
        sides = split(examples, options.seed, options.held_out_share, options.held_out_count)
    train, held_out, left_out = (tuple(index for index in side if rendered[index])
                                 for side in (sides.train, sides.held_out, sides.left_out))
    if not train:
        long = f": {len(too_long)} are too long, {too_long[0].place} {too_long[0].reason}" if too_long else ""
        raise EvidenceError(f"no row is left to train on{long}",
                            hint="hold out less, name more conversations, or allow longer rows")
    return Split(train, held_out, left_out)


def _refuse_leakage(leakage: Leakage, options: DataOptions) -> None:
    if leakage.is_certain and not options.allow_leakage:
        pairs = "\n".join(f"  {one} and {other}" for one, other in leakage.places)
        raise EvidenceError(f"{leakage.same_prompt} rows held out have a prompt that is trained on, "
                            f"{leakage.same_conversation} a conversation, such as\n{pairs}",
                            hint="what they measure is memory; mend the files, or --allow-leakage")


def _saved(examples: Sequence[TrainingExample], students: Sequence[TrainingExample], used: Sequence[int],
           tokens: Tokens,
           options: DataOptions) -> PromptSavings | None:
    if options.absorb_system is False:
        return None
    return saved([examples[index] for index in used], [students[index] for index in used], tokens)


def _digest(*sides: Sequence[EncodedRow]) -> str:
    digest = hashlib.sha256()
    for rows in sides:
        digest.update(len(rows).to_bytes(8, "little"))
        for row in rows:
            digest.update(len(row.tokens).to_bytes(8, "little"))
            digest.update(row.tokens.astype("<i4").tobytes() + row.is_target.tobytes())
            digest.update(b"".join(image.digest for image in row.images))
    return digest.hexdigest()
