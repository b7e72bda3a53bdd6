"""Answers that must fit a grammar: which tokens may come next, by llguidance.

The tokenizer's trie takes a few tenths of a second to build, so it is made when the first grammar comes.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from brise.engine.request import Grammar
from brise.errors import RequestError
from brise.models.weights import Array
from brise.text.tokenizer import Tokenizer

# Small models love to write line breaks for ever where JSON allows them; this is room for a deep indentation.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,32}"
_NUM_KEPT = 64  # compiled grammars; a workflow sends the same few again and again


class Grammars:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A fresh answer's place in `grammar`; RequestError if it is none."""
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compiled[grammar] = self._compile(grammar)
                if len(self._compiled) > _NUM_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return Constraint(matcher.deep_copy())

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._trie is None:
            self._trie = LLTokenizer(self._tokenizer.to_json(), n_vocab=self._tokenizer.vocab_size,
                                     eos_token=sorted(self._tokenizer.end_ids))
        matcher = LLMatcher(self._trie, _source(grammar), log_level=0)
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        # Some grammars (a schema that is only a reference to itself) are found to be empty at the first token.
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise _refused(grammar, trial.get_error())
        return matcher


class Constraint:
    """One answer's place in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Nothing but the end may follow."""
        return self._matcher.is_stopped()

    def apply(self, logits_V: Array) -> Array:
        """A copy with minus infinity wherever the grammar forbids the token."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_error()
        allowed_V = np.unpackbits(bits, count=len(logits_V), bitorder="little").view(np.bool_)
        out_V = np.full_like(logits_V, -np.inf)
        np.copyto(out_V, logits_V, where=allowed_V)
        return out_V

    def advance(self, token: int) -> None:
        """The answer has got `token`."""
        self._matcher.consume_token(token)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise ArithmeticError(f"the grammar cannot go on: {self._matcher.get_error()}")


def _source(grammar: Grammar) -> str:
    try:
        match grammar.kind:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(
                    grammar.text, defaults={"whitespace_pattern": _WHITESPACE})
            case "json_object":
                return LLMatcher.grammar_from_json_schema(
                    '{"type": "object"}', defaults={"whitespace_pattern": _WHITESPACE})
            case "lark":
                return LLMatcher.grammar_from_lark(grammar.text)
    except ValueError as error:
        raise _refused(grammar, str(error)) from error


def _refused(grammar: Grammar, why: str) -> RequestError:
    return RequestError(f"the {grammar.kind} grammar cannot be used: {why.strip()}", param="grammar",
                        code="invalid_grammar")
