"""Answers that must fit a grammar: which tokens may come next, by llguidance.

The tokenizer's trie takes a few tenths of a second to build, so it is made when the first grammar comes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from brise.errors import RequestError
from brise.models.weights import Array
from brise.text.inputs import Grammar
from brise.text.protocols import TextTokenizer

# Small models love to write line breaks for ever where JSON allows them; this is room for a deep indentation.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,32}"
_NUM_KEPT = 64  # compiled grammars; a workflow sends the same few again and again


class Grammars:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A fresh answer's place in `grammar`; RequestError if it is none."""
        whole = replace(grammar, begun="")
        with self._lock:
            matcher = self._compiled.get(whole)
            if matcher is None:
                matcher = self._compiled[whole] = self._compile(whole)
                if len(self._compiled) > _NUM_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(whole)
            place = matcher.deep_copy()
        if grammar.begun and not place.consume_tokens(self._tokenizer.encode(grammar.begun)):
            raise RequestError(f"the answer begins with {grammar.begun[:40]!r}, which does not fit its {grammar.kind}",
                               param="grammar", code="invalid_grammar")
        return Constraint(place)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._trie is None:
            self._trie = LLTokenizer(TokenizerWrapper(_Words(self._tokenizer)), n_vocab=self._tokenizer.vocab_size,
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


class _Words:
    """Our tokenizer as llguidance asks it: a tokenizer.json would have it build a second one, with thrice the memory.

    User-defined tokens (<tool_call> in Qwen's files) are ordinary text here: a grammar that asks for the text
    allows the token too. Control tokens are not, whatever text they look like.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.eos_token_id, self.bos_token_id = min(tokenizer.end_ids, default=0), tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token, show_control=True) for token in ids]
        self.special_token_ids = [token for token in ids if tokenizer.is_control(token)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Ids of text that a grammar demands; none where the model has no tokens for it."""
        try:
            return self._tokenizer.encode(text)
        except RequestError:
            return []


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


def trie(tokenizer: TextTokenizer) -> LLTokenizer:
    """The vocabulary as llguidance wants it."""
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.vocab_size,
                       eos_token=sorted(tokenizer.end_ids))


class _Vocabulary:
    """Every token's bytes. Control strings, shown ones (<tool_call> in Qwen's files) too, are kept apart from text:

    a grammar asks for them by number, as <[9]>.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(tokenizer.end_ids, default=0)
        self.tokens = [tokenizer.token_bytes(token, show_control=True) for token in range(tokenizer.vocab_size)]
        control = {*tokenizer.control.values()}
        self.special_token_ids = [token for token in range(tokenizer.vocab_size)
                                  if token in control or tokenizer.is_control(token)]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("only text is encoded")  # llguidance asks once whether bytes are
        return self._tokenizer.encode(text)


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
