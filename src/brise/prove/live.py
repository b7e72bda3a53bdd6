"""Makes pairs now: both models answer the examples of a data file, and the answers are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brise import settings
from brise.data import identity
from brise.data.parse_row import RowRules
from brise.dialects.bodies import context_digest
from brise.errors import EvidenceError
from brise.evals import data, report
from brise.evals.answering import Answerer, AnswerSettings, answer_all
from brise.evals.data import Reading
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.local import LocalAnswerer, load_local
from brise.files.atomic import private_folder
from brise.files.digests import StoredFile, file_digest, list_digest
from brise.prove.options import LiveOptions, ProveOptions, SmallModelOptions
from brise.prove.pairs import NO_CONTEXT, ModelAnswer, Pair, choose
from brise.prove.sources import PairSource
from brise.watch import Watcher


def select(options: ProveOptions, watcher: Watcher) -> PairSource:
    """Asks both models what is not answered yet. For a plan alone nobody is asked, and answers are empty."""
    live, pairs = options.live, options.pairs
    examples = data.read(live.data, Reading(rules=RowRules(live.conversation)))
    name = live.large_name
    if options.plan_only:
        if options.discordance is None:
            raise EvidenceError("--plan-only with DATA asks nobody, so it cannot count how many answers differ",
                                hint="state --psi, such as 0.1")
        small_name = live.name or options.small.model
        small = large = [EvalAnswer()] * len(examples)
        again = None
    else:
        answerer = _small(live, options.small, watcher)
        small_name = answerer.name
        small = _answers(live, answerer, examples, "small", watcher)
        large = _answers(live, _large(live), examples, "large", watcher)
        again = _answers(live, _large(live), examples, "again", watcher) if live.reask else None
    found = [_pair(at, example, ModelAnswer(small[at], small_name), ModelAnswer(large[at], name),
                   None if again is None else ModelAnswer(again[at], name)) for at, example in enumerate(examples)]
    return PairSource(pairs.task or live.data[0].stem, ", ".join(map(str, live.data)), _digest(live.data),
                      choose(found, any_context=pairs.any_context), _notes(examples))


def _pair(at: int, example: EvalExample, small: ModelAnswer, large: ModelAnswer, again: ModelAnswer | None) -> Pair:
    fields = {"messages": [{**message} for message in example.prompt], "tools": [{**tool} for tool in example.tools]}
    return Pair(f"{at}-{example.digest}", example.place, example.conversation, small, large, again,
                prompt=example.prompt, tools=example.tools, reference=example.reference,
                context=context_digest(fields) or NO_CONTEXT, meta=example.meta,
                is_named=not identity.is_derived(example.conversation))


def _small(live: LiveOptions, small: SmallModelOptions, watcher: Watcher) -> Answerer:
    asked = AnswerSettings(live.max_tokens)
    if live.endpoint is not None:
        assert live.name is not None, "checked before"
        return EndpointAnswerer(Endpoint(live.endpoint, live.name, _key(live.key_env)), asked, parallel=live.parallel)
    assert small.model is not None, "checked before"
    local = load_local(small.model, small.adapter, any_base=small.any_base, threads=None, watcher=watcher)
    return LocalAnswerer(local.model, asked, local.digest, parallel=live.parallel, adapter=local.adapter)


def _large(live: LiveOptions) -> Answerer:
    assert live.large_endpoint is not None and live.large_name is not None, "checked before"
    return EndpointAnswerer(Endpoint(live.large_endpoint, live.large_name, _key(live.large_key_env)),
                            AnswerSettings(live.max_tokens), parallel=live.parallel)


def _key(variable: str | None) -> str | None:
    return None if variable is None else settings.secret(variable)


def _answers(live: LiveOptions, answerer: Answerer, examples: Sequence[EvalExample], what: str,
             watcher: Watcher) -> list[EvalAnswer]:
    out = None
    if live.answers is not None:
        private_folder(live.answers)
        out = live.answers / f"{what}.jsonl"
    with watcher.progress(f"asking {answerer.name} ({what})", len({example.digest for example in examples}),
                      "examples") as advance:
        answered = answer_all(answerer, examples, out, advance)
    failed = sum(answer.error is not None for answer in answered.answers)
    if failed:
        watcher.note(f"{failed} of {len(examples)} examples got no answer of {answerer.name}; they "
                     f"{'count as wrong' if what == 'small' else 'are left out'}")
    return list(answered.answers)


def _notes(examples: Sequence[EvalExample]) -> tuple[str, ...]:
    """Where references are no ground truth, what they are."""
    if all(example.provider is None for example in examples):
        return ()
    return (f"the references are {report.label_source(examples)}",)


def _digest(paths: Sequence[Path]) -> str:
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return list_digest([StoredFile(file.name, file_digest(file), file.stat().st_size) for file in files])
