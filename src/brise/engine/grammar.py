"""Grammars for answers: llguidance computes which tokens may come next.

The tokenizer's trie takes a few tenths of a second to build. A server builds it when it starts (`warm`); elsewhere the
first request with a grammar does.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from brise.errors import RequestError
from brise.models.weights import Array
from brise.text.inputs import Grammar
from brise.text.protocols import TextTokenizer
from brise.text.schemas import enforceable
from brise.text.tool_grammar import FREE_SPACING, SPACING, guided

_START = re.compile(r"^start\s*:", re.MULTILINE)
_NUM_KEPT = 64  # compiled grammars; a workflow repeats the same few


class Grammars:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[Grammar, bool], LLMatcher] = OrderedDict()  # the flag: free white space
        self._lock, self._building = Lock(), Lock()

    def warm(self) -> None:
        """Builds the tokenizer's trie, so that no request waits for it."""
        self._built_trie()

    def constraint(self, grammar: Grammar) -> Constraint:
        """The state of a new answer in `grammar`; RequestError if the grammar is invalid.

        JSON has the white space of json.dumps, except where what is begun has another.
        """
        whole = replace(grammar, begun="")
        state = self._matcher(whole, is_free=False).deep_copy()
        if grammar.begun:
            begun = self._tokenizer.encode(grammar.begun, before="text")
            if not state.consume_tokens(begun):
                state = self._matcher(whole, is_free=True).deep_copy()
                if not state.consume_tokens(begun):
                    raise RequestError(f"the answer begins with {grammar.begun[:40]!r}, which does not fit its "
                                       f"{grammar.kind}", param="grammar", code="invalid_grammar")
        return Constraint(state)

    def _matcher(self, grammar: Grammar, *, is_free: bool) -> LLMatcher:
        """The compiled grammar. Others are used while one is compiled."""
        key = grammar, is_free
        with self._lock:
            matcher = self._compiled.get(key)
        if matcher is None:
            matcher = self._compile(grammar, is_free=is_free)
        with self._lock:
            self._compiled[key] = matcher
            self._compiled.move_to_end(key)
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _compile(self, grammar: Grammar, *, is_free: bool) -> LLMatcher:
        matcher = LLMatcher(self._built_trie(), _source(grammar, FREE_SPACING if is_free else SPACING), log_level=0)
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        # Some grammars (a schema that is only a reference to itself) turn out to be empty at the first token.
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise _refused(grammar, trial.get_error())
        return matcher

    def _built_trie(self) -> LLTokenizer:
        with self._building:
            if self._trie is None:
                self._trie = LLTokenizer(TokenizerWrapper(_Words(self._tokenizer)), n_vocab=self._tokenizer.vocab_size,
                                         eos_token=sorted(self._tokenizer.end_ids))
            return self._trie


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


def _source(grammar: Grammar, spacing: Mapping[str, object]) -> str:
    """The grammar in llguidance's form, with this white space in its JSON."""
    try:
        if grammar.kind == "lark":
            text = grammar.free if grammar.free and spacing is FREE_SPACING else grammar.text
            if grammar.has_space:
                text = _START.sub('start: " "? space_or_not\nspace_or_not:', text, count=1)
            return LLMatcher.grammar_from_lark(text)
        schema = {"type": "object"} if grammar.kind == "json_object" else json.loads(grammar.text)
        if isinstance(schema, dict):
            if grammar.kind == "json_schema":
                schema = enforceable(schema, "grammar", strict=grammar.strict).schema
            schema = guided(schema, spacing)
        if grammar.has_space:
            return LLMatcher.grammar_from_lark(f'start: " "? json\njson: %json {json.dumps(schema)}')
        return LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError as error:
        raise _refused(grammar, str(error)) from error


def _refused(grammar: Grammar, reason: str) -> RequestError:
    return RequestError(f"the {grammar.kind} grammar cannot be used: {reason.strip()}", param="grammar",
                        code="invalid_grammar")
