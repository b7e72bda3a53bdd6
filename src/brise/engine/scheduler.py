"""The scheduler decides which tokens of which sequences go into the next step.

Decodes and prefill chunks share one token budget: running sequences come first (oldest first), then waiting ones are
admitted, strictly in order of arrival. A sequence takes the pages of all its tokens when it is admitted, and one more
whenever it has filled its last one. If no page is left, the youngest running sequence gives up its pages and will be
computed again (its finished pages may still be in the prefix cache). A sequence that has reached an image takes part in
no step until the image is encoded.

While answers are written, prompts make a step longer by 0.05 to 0.1 s. Half of that is the oldest prompt's, so that
it goes on; the other half goes to the shortest ones, so that none waits for a long one. Prompts alone fill the step, in
order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from brise.engine.pages import Pages
from brise.engine.sequence import Sequence
from brise.engine.step_cost import StepCost, StepLoad

# How long answers wait for prompts in a step: three times what their own tokens take, within these bounds. Shorter
# chunks cost throughput, because each step reads all weights (LOG.md). A 1.5B that writes 16 answers takes 0.1 s for
# their tokens, so the gap between tokens is about 0.2 s at most; for a 135M it is 0.06 s.
PROMPT_S, MOST_PROMPT_S, _PROMPT_SHARE = 0.05, 0.1, 3.0
_LEAST_TOKENS = 8  # of prompts in a step, whatever they cost


class Chunk(NamedTuple):
    """Tokens start to end of a sequence, which go into a step; logits are computed from first_row to end.

    The last `num_drafted` tokens are not yet the sequence's own: they may turn out to be wrong (engine/speculation.py).
    """

    sequence: Sequence
    start: int
    end: int
    first_row: int
    num_drafted: int = 0

    @property
    def known_end(self) -> int:
        """Where its drafted tokens begin."""
        return self.end - self.num_drafted


class Scheduler:
    """`max_rows` bounds the rows of logits of one step, which are its largest arrays (rows * vocabulary).

    `longest_span` is the length of an image whose tokens go into one step together: there is always room for one.
    `cost` says what steps take; the engine teaches it.
    """

    def __init__(self, pages: Pages, cost: StepCost, *, max_step_tokens: int, max_sequences: int,
                 longest_span: int = 0) -> None:
        self.pages, self.cost = pages, cost
        self.max_step_tokens, self.longest_span = max_step_tokens, longest_span
        # Every running sequence is in every step, so that none of them starves.
        self.max_sequences = max(min(max_sequences, max_step_tokens - longest_span), 1)
        self.max_rows = max(64, self.max_sequences)
        self.waiting: list[Sequence] = []  # by order
        self.running: list[Sequence] = []  # by order
        self.num_preemptions = 0

    @property
    def num_unstarted(self) -> int:
        """The number of sequences that have never run: the queue that a client sees."""
        return sum(not sequence.was_admitted for sequence in self.waiting)

    @property
    def has_urgent(self) -> bool:
        """Whether an urgent sequence runs or waits: then no other takes part in a step."""
        return any(queue and queue[0].is_urgent for queue in (self.running, self.waiting))

    @property
    def active(self) -> list[Sequence]:
        """The running sequences that take part in steps."""
        return [sequence for sequence in self.running if sequence.is_urgent] if self.has_urgent else self.running

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence, running or waiting, and frees its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pages.release(sequence.drop_pages())

    def schedule(self, max_tokens: int | None = None, max_s: float | None = None,
                 cost: StepCost | None = None) -> list[Chunk]:
        """The chunks of the next step. Not empty if a sequence runs or waits, provided that each fits into the pages by
        itself, unless all running ones wait for images. Prompts advance in smaller chunks with `max_tokens`, or with
        `max_s`, the seconds that the step may take; `cost` says what it takes, if it is not a usual one."""
        self._grow()
        chunks: list[Chunk] = []
        # A decode takes one token and one row. Decodes are counted first; prefills share the rest.
        running = self.active
        decodes = [s for s in running if s.num_tokens - s.num_computed == 1]  # or an image's last token
        room = self._room(decodes, max_tokens, max_s, cost or self.cost)
        chunks += [Chunk(s, s.num_computed, s.num_tokens, s.num_computed) for s in decodes
                   if not s.spans or s.limit == s.num_tokens]
        prompts = [s for s in running if s.num_tokens - s.num_computed != 1 and s.limit > s.num_computed]
        chunks += self._shared(prompts, room) if room.max_s is not None and prompts else self._in_order(prompts, room)
        return chunks

    def _in_order(self, prompts: list[Sequence], room: _Room) -> Iterator[Chunk]:
        """Chunks of prompts, and of those that are admitted behind them."""
        for sequence in prompts:
            chunk = room.prefill(sequence)
            if chunk.end > chunk.start:
                yield chunk
        if self.waiting:
            yield from self._admit(room, self.has_urgent)

    def _shared(self, prompts: list[Sequence], room: _Room) -> Iterator[Chunk]:
        """Chunks of the other prompts, shortest first, in half of the room, and of the oldest in what is left."""
        oldest, *others = prompts
        others.sort(key=lambda sequence: (sequence.num_tokens - sequence.num_computed, sequence.order))
        if others or self.waiting:
            half = room.half(self.longest_span)
            yield from self._in_order(others, half)
            room.take(half)
        yield from self._in_order([oldest], room)

    def complete(self, chunks: list[Chunk]) -> None:
        """Records that the step has run: its keys and values are in the cache, and its full pages become reusable."""
        for chunk in chunks:
            self.mark_computed(chunk.sequence, chunk.known_end)

    def mark_computed(self, sequence: Sequence, end: int) -> None:
        """Records that tokens before `end` are the sequence's own and computed."""
        page_size = self.pages.page_size
        sequence.mark_computed(end)
        for index in range(sequence.num_registered, end // page_size if self.pages.prefix_cache else 0):
            self.pages.register(int(sequence.table[index]), sequence.key(index, page_size))
            sequence.num_registered = index + 1

    def lend(self, sequence: Sequence, end: int) -> int:
        """Gives a running sequence pages for drafted tokens up to `end`, as far as no other needs them soon; returns
        how far its pages reach, at most `end`."""
        page_size = self.pages.page_size
        needed = -(-end // page_size) - sequence.num_pages
        spare = self.pages.num_available - len(self.running)
        if needed > 0 and spare > 0:
            sequence.hold(self.pages.allocate(min(needed, spare)))
        return min(end, sequence.num_pages * page_size)

    def take_back(self, sequence: Sequence) -> None:
        """Frees the pages that it holds beyond its own tokens."""
        self.pages.release(sequence.drop_pages_behind(-(-sequence.num_tokens // self.pages.page_size)))

    def make_room(self, num_pages: int) -> None:
        """Preempts, youngest first, until `num_pages` are available or nothing runs."""
        while self.pages.num_available < num_pages and self.running:
            self._preempt()

    def _grow(self) -> None:
        """Gives one more page to each running sequence that has filled its last one, oldest first."""
        page_size = self.pages.page_size
        position = 0
        while position < len(self.running):
            sequence = self.running[position]
            if sequence.num_tokens > sequence.num_pages * page_size:
                self.make_room(1)
                if position == len(self.running):
                    return  # it was the youngest itself
                sequence.hold(self.pages.allocate(1))
            position += 1

    def _preempt(self) -> None:
        youngest = self.running.pop()
        self.pages.release(youngest.drop_pages())
        self.add(youngest)
        self.num_preemptions += 1

    def _room(self, decodes: list[Sequence], max_tokens: int | None, max_s: float | None, cost: StepCost) -> _Room:
        """What prompts may take in the next step."""
        load = StepLoad()
        for sequence in decodes:
            load = load.plus(1, sequence.num_computed)
        if max_s is None and any(sequence.num_tokens > sequence.num_prompt for sequence in decodes):
            answers_s = cost.seconds(load)
            max_s = answers_s + min(max(_PROMPT_SHARE * answers_s, PROMPT_S), MOST_PROMPT_S)
        most = self.max_step_tokens - len(decodes)
        wanted = most if max_tokens is None else min(max_tokens - len(decodes), most)
        return _Room(cost, load, max_s, wanted, most, self.max_rows - len(decodes), _LEAST_TOKENS)

    def _admit(self, room: _Room, has_urgent: bool) -> Iterator[Chunk]:
        while self.waiting and not room.is_full and self.waiting[0].is_urgent == has_urgent:
            if has_urgent:
                self._make_way(self.waiting[0])
            sequence = self.waiting[0]
            if len(self.running) >= self.max_sequences or not self._take_pages(sequence):
                return
            del self.waiting[0]
            insort(self.running, sequence, key=_order)
            chunk = room.prefill(sequence)
            if chunk.end > chunk.start:
                yield chunk

    def _make_way(self, urgent: Sequence) -> None:
        """Preempts others, youngest first, while an urgent sequence finds no place or no pages."""
        needed = -(-urgent.num_tokens // self.pages.page_size) + len(self.running)
        while self.running and not self.running[-1].is_urgent and (
                len(self.running) >= self.max_sequences or self.pages.num_available < needed):
            self._preempt()

    def _take_pages(self, sequence: Sequence) -> bool:
        """Takes pages for all tokens so far, the first ones from the prefix cache; False if there are too few."""
        page_size = self.pages.page_size
        needed = -(-sequence.num_tokens // page_size)
        cached: list[int] = []
        if self.pages.prefix_cache and not sequence.wants_scores:
            # The last token is always computed, because its logits are needed.
            cached = self.pages.match(sequence.keys((sequence.num_tokens - 1) // page_size, page_size))
        # Each running sequence may need a page soon; admitting one and preempting it again would waste a prefill.
        if needed - len(cached) + len(self.running) > self.pages.num_available:
            self.pages.release(cached)
            return False
        sequence.hold(cached)
        sequence.hold(self.pages.allocate(needed - len(cached)))
        sequence.num_computed = len(cached) * page_size
        sequence.num_registered = len(cached)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached = sequence.num_computed
        return True


@dataclass
class _Room:
    """What is left of a step for prompts: `wanted` tokens, but up to `most` where an image that sees itself would be
    cut otherwise, `rows` of logits, and what `load`, the step's work so far, leaves of `max_s`."""

    cost: StepCost
    load: StepLoad
    max_s: float | None  # None: nobody waits for the step
    wanted: int
    most: int
    rows: int
    least: int  # tokens, whatever they cost

    def half(self, kept: int) -> _Room:
        """Half of the room. Of `most`, `kept` tokens are left out of it: an image of the other half goes first."""
        assert self.max_s is not None
        middle_s = (self.max_s + self.cost.seconds(self.load)) / 2
        return replace(self, max_s=middle_s, most=self.most - kept, rows=self.rows // 2, least=0)

    def take(self, half: _Room) -> None:
        """Takes what was used of a half."""
        self.load = half.load
        self.most -= self.wanted - half.wanted
        self.rows -= self.rows // 2 - half.rows
        self.wanted = half.wanted

    @property
    def is_full(self) -> bool:
        return self._tokens(0) == 0

    def prefill(self, sequence: Sequence) -> Chunk:
        """A chunk of as many of the next tokens as there is room for; it takes the room."""
        start = sequence.num_computed
        chunk = _prefill(sequence, self._tokens(start), self.rows, self.most)
        num_tokens = chunk.end - start
        self.load = self.load.plus(num_tokens, start)
        self.wanted -= num_tokens
        self.most -= num_tokens
        self.least -= num_tokens
        self.rows -= chunk.end - chunk.first_row
        return chunk

    def _tokens(self, start: int) -> int:
        """Of a sequence that has been computed up to `start`."""
        if self.max_s is None or self.wanted <= 0:
            return max(self.wanted, 0)
        within = self.cost.most_tokens(self.load, start, self.wanted, self.max_s)
        return min(max(within, self.least), self.wanted)


def _prefill(sequence: Sequence, tokens: int, rows: int, most: int) -> Chunk:
    """A chunk of as many of the next tokens as the budgets of tokens and rows allow, up to `most` where an image that
    sees itself would be cut otherwise."""
    start = sequence.num_computed
    if tokens == 0:
        return Chunk(sequence, start, start, start)
    end = min(sequence.limit, start + tokens)
    before, behind = sequence.whole(end)
    end = behind if behind - start <= most else before
    if sequence.wants_scores:
        first_row = max(start, sequence.num_scored)
        end = min(end, first_row + rows)
        return Chunk(sequence, start, end, min(first_row, end))
    if end == sequence.num_tokens and rows == 0:
        end -= 1
    return Chunk(sequence, start, end, end - 1 if end == sequence.num_tokens else end)


def _order(sequence: Sequence) -> tuple[bool, tuple[int, int]]:
    return not sequence.is_urgent, sequence.order
