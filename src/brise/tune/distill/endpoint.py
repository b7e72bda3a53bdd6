"""A teacher at an API: it answers the prompts of the data, and its answers are learned.

    asked/answers.jsonl    every answer (evals/answers_file.py): no prompt is sent twice
    asked/rows.jsonl       the rows to train on, with their provider

Both lie in the run's folder. The right to train on the provider's answers is checked before anything is sent.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brise import settings
from brise.data.parse_row import RowRules
from brise.data.prepare import DataOptions
from brise.errors import EvidenceError
from brise.evals import data
from brise.evals.answering import AnswerSettings, answer_all
from brise.evals.endpoint import Endpoint, EndpointAnswerer, sent
from brise.evals.example import EvalAnswer, EvalExample
from brise.files.atomic import output_errors, private_folder, staged_file
from brise.text.json_text import mended_text
from brise.tune.options import TeacherEndpoint
from brise.tune.run_folder import ASKED, Plain
from brise.watch import Watcher

ANSWERS, ROWS = "answers.jsonl", "rows.jsonl"
_WHOLE = ("stop", "tool_calls")


def settings_of(teacher: TeacherEndpoint | None) -> dict[str, Plain]:
    """The source of the answers, for the run and the adapter's lineage."""
    if teacher is None:
        return {}
    return {"teacher_endpoint": teacher.url, "teacher_name": teacher.name, "teacher_provider": teacher.host}


def answered_rows(teacher: TeacherEndpoint, paths: Sequence[Path], out: Path, options: DataOptions,
                  watcher: Watcher) -> tuple[list[Path], DataOptions]:
    """Asks the prompts of `paths`; gives the files to train on, and how they are read."""
    examples = data.read(paths, data.Reading(rules=RowRules(options.conversation), columns=options.columns))
    if teacher.host is not None:
        options.rights.used({teacher.host: len(examples)}, datetime.date.today())
    key = None if teacher.key_env is None else settings.secret(teacher.key_env)
    answerer = EndpointAnswerer(Endpoint(teacher.url, teacher.name, key), AnswerSettings(teacher.max_tokens))
    folder = out / ASKED
    with output_errors(folder):
        private_folder(folder)
    with watcher.progress(f"asking {teacher.name}", len({example.digest for example in examples}),
                          "prompts") as advance:
        answers = answer_all(answerer, examples, folder / ANSWERS, advance).answers
    _write(folder / ROWS, teacher, examples, answers, watcher)
    return [folder / ROWS], replace(options, conversation=())  # the rows now name theirs


def _write(path: Path, teacher: TeacherEndpoint, examples: Sequence[EvalExample], answers: Sequence[EvalAnswer],
           watcher: Watcher) -> None:
    """Writes a row for each complete answer, and notes how many are not."""
    lines = [json.dumps(_row(teacher, example, answer), ensure_ascii=False) + "\n"
             for example, answer in zip(examples, answers, strict=True) if _why_not(answer) is None]
    reasons = [why for answer in answers if (why := _why_not(answer)) is not None]
    for why in dict.fromkeys(reasons):
        watcher.note(f"{reasons.count(why)} of {len(examples)} prompts are left out: {why}")
    if not lines:
        raise EvidenceError(f"none of {len(examples)} prompts got an answer that can be learned: {reasons[0]}")
    text = mended_text("".join(lines)).encode()
    path.unlink(missing_ok=True)  # left by a run that resumes, which writes the same again
    with staged_file(path, len(text), mode=0o600) as file:
        file.write(text)


def _why_not(answer: EvalAnswer) -> str | None:
    """Why an answer cannot be learned."""
    if answer.error is not None:
        return f"the endpoint refused ({answer.error})"
    if answer.finish not in _WHOLE:
        return "the answer is cut, at --teacher-tokens" if answer.finish == "length" else f"it ended by {answer.finish}"
    if not answer.text and not answer.calls:
        return "the answer is empty"
    return None


def _row(teacher: TeacherEndpoint, example: EvalExample, answer: EvalAnswer) -> dict[str, object]:
    calls = [{"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
             for number, call in enumerate(answer.calls)]
    last = {"role": "assistant", "content": answer.text, **({"tool_calls": calls} if calls else {})}
    return {"messages": [*(sent(message, example.place) for message in example.prompt), last],
            **({"tools": [dict(tool) for tool in example.tools]} if example.tools else {}),
            "conversation": example.conversation, "model": teacher.name,
            **({"provider": teacher.host} if teacher.host else {}),
            "meta": {**example.meta, "asked": example.place}}
