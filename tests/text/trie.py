"""A vocabulary for llguidance in which every special token, visible ones too, is apart from text."""

from __future__ import annotations

from llguidance import LLTokenizer, TokenizerWrapper

from brise.text.protocols import TextTokenizer


def trie(tokenizer: TextTokenizer) -> LLTokenizer:
    """The vocabulary as llguidance searches it."""
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.vocab_size,
                       eos_token=sorted(tokenizer.end_ids))


class _Vocabulary:
    """The bytes of every token. A grammar names special tokens (<tool_call> in Qwen's files too) by number: <[9]>."""

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
            raise TypeError("only text is encoded")  # llguidance tries bytes once
        return self._tokenizer.encode(text, before="text")
