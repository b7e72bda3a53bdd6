"""Grammars for answers: llguidance computes which tokens may come next.

The tokenizer's trie takes a few tenths of a second to build, so it is built for the first request with a grammar.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from brise.errors import RequestError
from brise.models.weights import Array
from brise.text.inputs import Grammar
from brise.text.protocols import TextTokenizer
from brise.text.schemas import enforceable
from brise.text.tool_grammar import WHITESPACE

_START = re.compile(r"^start\s*:", re.MULTILINE)
_NUM_KEPT = 64  # compiled grammars; a workflow repeats the same few


class Grammars:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """The state of a new answer in `grammar`; RequestError if the grammar is invalid."""
        whole = replace(grammar, begun="")
        with self._lock:
            matcher = self._compiled.get(whole)
            if matcher is None:
                matcher = self._compiled[whole] = self._compile(whole)
                if len(self._compiled) > _NUM_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(whole)
            state = matcher.deep_copy()
        if grammar.begun and not state.consume_tokens(
                self._tokenizer.encode(grammar.begun, before="text")):
            raise RequestError(f"the answer begins with {grammar.begun[:40]!r}, which does not fit its {grammar.kind}",
                               param="grammar", code="invalid_grammar")
        return Constraint(state)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._trie is None:
            self._trie = LLTokenizer(TokenizerWrapper(_Words(self._tokenizer)), n_vocab=self._tokenizer.vocab_size,
                                     eos_token=sorted(self._tokenizer.end_ids))
        matcher = LLMatcher(self._trie, _source(grammar), log_level=0)
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        # Some grammars (a schema that is only a reference to itself) turn out to be empty at the first token.
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise _refused(grammar, trial.get_error())
        return matcher


class _Words:
    """Our tokenizer behind llguidance's interface: a tokenizer.json would make one three times as large.

    User-defined tokens (<tool_call> in Qwen's files) are ordinary text here: a grammar that allows the text allows the
    token too. Control tokens are not, whatever text they look like.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.eos_token_id, self.bos_token_id = min(tokenizer.end_ids, default=0), tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token, show_control=True) for token in ids]
        self.special_token_ids = [token for token in ids if tokenizer.is_control(token)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Ids of text that a grammar requires; empty if the model has no tokens for it."""
        try:
            return self._tokenizer.encode(text, before="text")
        except RequestError:
            return []


class Constraint:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether only the end may follow."""
        return self._matcher.is_stopped()

    def apply(self, logits_V: Array) -> Array:
        """A copy of the logits with minus infinity for every token that the grammar forbids."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_error()
        allowed_V = np.unpackbits(bits, count=len(logits_V), bitorder="little").view(np.bool_)
        out_V = np.full_like(logits_V, -np.inf)
        np.copyto(out_V, logits_V, where=allowed_V)
        return out_V

    def forced(self) -> list[int]:
        """Tokens of the text that alone may follow, if there is one. The model may cut that text into other tokens."""
        if self._matcher.is_stopped():
            return []
        tokens = self._matcher.compute_ff_tokens()
        self._raise_error()
        return tokens

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, the grammar allows."""
        count = self._matcher.validate_tokens(list(tokens))
        self._raise_error()
        return count

    def advance(self, token: int) -> None:
        """Records that the answer has got `token`."""
        self._matcher.consume_token(token)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise ArithmeticError(f"the grammar cannot continue: {self._matcher.get_error()}")


def _source(grammar: Grammar) -> str:
    try:
        if grammar.has_space:
            return LLMatcher.grammar_from_lark(_with_space(grammar))
        match grammar.kind:
            case "json_schema":
                schema = json.loads(grammar.text)
                if isinstance(schema, dict):
                    schema = enforceable(schema, "grammar", strict=grammar.strict).schema
                return LLMatcher.grammar_from_json_schema(
                    json.dumps(schema), defaults={"whitespace_pattern": WHITESPACE})
            case "json_object":
                return LLMatcher.grammar_from_json_schema(
                    '{"type": "object"}', defaults={"whitespace_pattern": WHITESPACE})
            case "lark":
                return LLMatcher.grammar_from_lark(grammar.text)
    except ValueError as error:
        raise _refused(grammar, str(error)) from error


def _with_space(grammar: Grammar) -> str:
    """A Lark grammar of the same answers with or without a space before them."""
    if grammar.kind == "lark":
        return _START.sub('start: " "? space_or_not\nspace_or_not:', grammar.text, count=1)
    schema = {"type": "object"} if grammar.kind == "json_object" else json.loads(grammar.text)
    if isinstance(schema, dict):
        if grammar.kind == "json_schema":
            schema = enforceable(schema, "grammar", strict=grammar.strict).schema
        schema = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return f'start: " "? json\njson: %json {json.dumps(schema)}'


def _refused(grammar: Grammar, reason: str) -> RequestError:
    return RequestError(f"the {grammar.kind} grammar cannot be used: {reason.strip()}", param="grammar",
                        code="invalid_grammar")
