"""Labels given on the page: the questions of `brise label`, one at a time, and nobody is told whose answer is which.

The browser knows a question by a name that says nothing; which exchange it is of, and whose answer is A, stays here.
Finding the questions opens all answers of a task, so for much traffic it is done in a process of its own:

    python -m brise.page.labelling    reads {"task", "store"} and prints what `questions` gives
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from brise.errors import BriseError, RequestError
from brise.evals.example import EvalAnswer
from brise.page import captured, reports
from brise.page.endpoint import PageEndpoint, PageOptions, PageRequest
from brise.page.proof import SMALL
from brise.prove import label, label_queue, pairs_store
from brise.prove.label import LabelOptions
from brise.prove.label_book import StoreBook
from brise.prove.label_queue import Question
from brise.prove.options import PairOptions
from brise.serve.error_response import NotFoundError
from brise.text.conversation import plain_text
from brise.traffic.store import Query, TrafficStore

MOST_ASKED = 200  # questions that are named at one time
MOST_OPEN = 5000  # that are remembered, of all tasks and people
SHOWN_MESSAGES = 20  # of a conversation, the last ones
PERSON = "person"  # who judges, as `brise label` has it


@dataclass(frozen=True)
class PageQuestion:
    """A question without its content. `is_swapped`: A is the large model's answer."""

    exchange: str
    answer: str
    is_swapped: bool
    is_second: bool


@dataclass
class Labelling:
    """The questions that were named to browsers, the newest last."""

    options: PageOptions
    _named: OrderedDict[str, PageQuestion] = field(default_factory=OrderedDict)

    def queue(self, request: PageRequest) -> object:
        """Names of the next questions, and how far the labels go."""
        task = request.query.get("task", "")
        with closing(captured.opened(self.options)) as store:
            number = store.count(Query(task=task, content=False))
        found = questions(self.options, task) if number <= SMALL else reports.of_process(
            {"task": task, "store": self.options.place}, module=__name__)
        names = []
        for asked in found["questions"][:MOST_ASKED]:
            names.append(secrets.token_hex(8))
            self._named[names[-1]] = PageQuestion(**asked)
        while len(self._named) > MOST_OPEN:
            self._named.popitem(last=False)
        return {"questions": names, "number": len(found["questions"]), "summary": found["summary"]}

    def question(self, request: PageRequest) -> object:
        """What was asked, and both answers: no names, no times, nothing that tells them apart."""
        with closing(captured.opened(self.options)) as store:
            question = self._question(store, request.path["name"])
        prompt = question.pair.prompt
        return {"left_out": max(len(prompt) - SHOWN_MESSAGES, 0),
                "messages": [{"role": str(message["role"]), "text": captured.shortened(
                    plain_text(message.get("content")))} for message in prompt[-SHOWN_MESSAGES:]],
                "a": _shown(question.a), "b": _shown(question.b)}

    def verdict(self, request: PageRequest) -> object:
        """Keeps a verdict, as `brise label` does."""
        name, word = request.text("question"), request.text("choice")
        choice = next((known for known in label_queue.CHOICES if known == word), None)
        if choice is None:
            raise RequestError(f"'choice' is {word[:64]!r}, allowed are {', '.join(label_queue.CHOICES)}",
                               param="choice")
        with closing(captured.opened(self.options)) as store:
            question = self._question(store, name)
            label.give(StoreBook(store, [question.pair]), question, choice, request.key or PERSON)
        self._named.pop(name, None)
        return {"kept": choice}

    def _question(self, store: TrafficStore, name: str) -> Question:
        asked = self._named.get(name)
        pair = None if asked is None else pairs_store.one(store, asked.exchange, asked.answer)
        if asked is None or pair is None:
            raise NotFoundError("this question is not open any more")
        return Question(pair, asked.is_swapped, asked.is_second)


def endpoints(options: PageOptions) -> Sequence[PageEndpoint]:
    """The endpoints of labelling."""
    found = Labelling(options)
    return (PageEndpoint("labels", found.queue, needs="content", is_slow=True),
            PageEndpoint("labels/{name}", found.question, needs="content"),
            PageEndpoint("label", found.verdict, needs="operate", method="POST"))


def questions(options: PageOptions, task: str) -> Mapping[str, Any]:
    """The questions that `brise label` would ask now, in its order, and its summary."""
    with label.session(LabelOptions(PairOptions(task=task, store=options.place))) as session:
        found = session.summary()
        return {"questions": [asdict(PageQuestion(question.pair.id, question.pair.small.id or "", question.is_swapped,
                                                  question.is_second)) for question in session.questions],
                "summary": asdict(found)}


def main() -> None:
    """The questions of one task, from standard input to standard output."""
    os.nice(reports.NICE)
    asked = json.load(sys.stdin)
    try:
        found = questions(PageOptions(asked["store"]), asked["task"])
    except BriseError as error:
        found = {"error": str(error.args[0]), "hint": error.hint}
    json.dump(found, sys.stdout, allow_nan=False)


def _shown(answer: EvalAnswer) -> dict[str, Any]:
    return {"text": None if answer.error is not None else captured.shortened(answer.text),
            "calls": [{"name": call.name, "arguments": captured.shortened(call.arguments)} for call in answer.calls]}


if __name__ == "__main__":
    main()
