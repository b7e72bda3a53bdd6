"""Encodes and decodes text as SentencePiece does: BPE by scores, or Unigram, where '▁' stands for a space.

A vocabulary of this kind lies in a tokenizer.model, in a GGUF file (`tokenizer.ggml.model` llama or t5), or in a
tokenizer.json. The pieces are matched by the `tokenizers` library; what comes before that, the map of characters and
the spaces, is here. Text without a piece becomes its bytes (`<0x0A>`), or the unknown token.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split

from brise.errors import CheckpointError, RequestError, bad_value
from brise.text import special_tokens
from brise.text.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from brise.text.hf_tokenizer import MAX_MERGES, PASSED_ON, library_errors
from brise.text.protocols import END_TEXTS, Before
from brise.text.special_tokens import SpecialTokenSplitter

SPACE = "\u2581"
MAX_PIECE = 512  # characters: each cut of a piece is looked up. The longest in use has 93
MAX_SCORE = 1e30  # sums of them must stay numbers of 32 bits; scores in use are over -1e9
_UNKNOWN_PENALTY = 10.0  # sentencepiece's: so much less than the worst piece is a character without one
_WORD_SCORE = -0.1  # of a user-defined token: sentencepiece takes its length times a maximum, which begins at FLT_MIN
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
# User-defined tokens of Gemma that are text, though they stand in brackets.
_HTML = frozenset("""
    table caption thead tbody tfoot tr th td h1 h2 h3 h4 h5 h6 blockquote strong em b i u s sub sup code a p br ul ol li
    pre div span img hr""".split())


@dataclass(frozen=True)
class Pieces:
    """A vocabulary: pieces by id with their types, and what decides between them."""

    texts: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None = None  # of Unigram, and of a BPE that `merges` does not describe
    merges: Sequence[tuple[str, str]] | None = None  # best first
    is_unigram: bool = False
    unk_id: int | None = None
    ignores_merges: bool = False  # a word that is a piece becomes that piece
    fuses_unknown: bool = True  # a run of text without pieces is one unknown token
    left: frozenset[str] = frozenset()  # special tokens that take the white space before them,
    right: frozenset[str] = frozenset()  # and those that take what is behind them


@dataclass(frozen=True)
class TextRules:
    """How text becomes what pieces are matched with.

    `prefixed` says behind what a text gets a space in front of it: at the start of everything, behind a special token.
    """

    steps: tuple[Callable[[str], str], ...] = ()  # in order, before spaces become '▁'
    prefixed: frozenset[Before] = frozenset({"start", "special"})
    doubles: bool = True  # the space also comes before a text that begins with one
    is_suffix: bool = False  # it comes behind the text instead
    restarts: bool = True  # behind a user-defined token as behind a special one
    splits: bool = False  # no piece goes on over the beginning of a word
    drops: bool = True  # decoding leaves out the space at the start
    charsmap: bytes = field(default=b"", repr=False)  # of the step that is one, for files that are written
    removes_spaces: bool = False  # so does a step
    precision: Literal["f", "d"] = "f"  # of a Unigram's sums: sentencepiece's 32 bits, the library's 64
    source: Mapping[str, object] = field(default_factory=dict, repr=False)  # what a tokenizer.json said, by its parts


class SentencePieceTokenizer:
    """SentencePiece. Control tokens such as </s> never arise from plain text."""

    def __init__(self, pieces: Pieces, rules: TextRules, *, bos_id: int | None, eos_id: int | None,
                 add_bos: bool, text_end_id: int | None = None, end_ids: Iterable[int] = ()) -> None:
        self.pieces, self.rules = pieces, rules
        texts, types = pieces.texts, pieces.types
        _check(pieces)
        special = {index: kind for index, kind in enumerate(types) if kind not in (NORMAL, BYTE, UNUSED)}
        self._words = {texts[index]: index for index, kind in special.items()
                       if kind == USER_DEFINED and not is_marker(texts[index])}
        shown = set(self._words.values())
        control = {texts[index]: index for index, kind in special.items()
                   if index not in shown}
        special_tokens.check(control)
        special_tokens.check(self._words)
        self.control: Mapping[str, int] = MappingProxyType(control)
        self._hidden = frozenset(index for index, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, UNUSED))
        self.bos_id, self.eos_id, self.add_bos, self.text_end_id = bos_id, eos_id, add_bos, text_end_id
        self.end_ids = frozenset(end_ids) | {index for text, index in control.items() if text in END_TEXTS}
        self.vocab_size = len(texts)
        self._bytes = _byte_ids(texts, types)
        self._byte_of = {index: bytes([byte]) for byte, index in enumerate(self._bytes or ())}
        self._match = (_unigram(pieces, rules, self._bytes, {} if rules.restarts else self._words)
                       if pieces.is_unigram else _bpe(pieces, rules, self._bytes))

    @property
    def has_bytes(self) -> bool:
        """Whether text without a piece becomes bytes."""
        return self._bytes is not None

    def encode(self, text: str, *, parse_control: bool = False, before: Before = "start") -> list[int]:
        """Ids of the text, without bos. With parse_control, special tokens in it become control tokens."""
        if not parse_control:
            return self._encode_plain(text, before)
        return special_tokens.encode(text, self.control, self.splitter, self._encode_plain, before)

    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        out: list[bytes] = []
        drops = self.rules.drops
        for token in ids:
            data = self.token_bytes(token, show_control=show_control)
            out.append(data[1:] if drops and data[:1] == b" " else data)
            if data or show_control:
                drops = show_control and self.drops_space_after(token)
        return b"".join(out).decode(errors="replace")

    def token_bytes(self, token: int, *, show_control: bool = False) -> bytes:
        """What a token adds to the text, maybe half a character. Nothing for a control token unless shown."""
        if not 0 <= token < self.vocab_size:
            raise RequestError(f"token {token} does not exist; the vocabulary has {self.vocab_size}")
        if token in self._hidden:
            return self.pieces.texts[token].encode() if show_control else b""
        byte = self._byte_of.get(token)
        return _spaced(self.pieces.texts[token]).encode() if byte is None else byte

    def token_text(self, token: int) -> str:
        """A token for display: control tokens by name, half characters as U+FFFD."""
        return self.token_bytes(token, show_control=True).decode(errors="replace")

    def is_control(self, token: int) -> bool:
        """Whether the token is no text: control, unknown or unused. User-defined ones are shown."""
        return token in self._hidden

    def drops_space_after(self, token: int | None) -> bool:
        """Whether a space that begins the text behind this token (None: at the start) is the tokenizer's own."""
        return self.rules.drops and (token is None or token in self._hidden) and not self._is_infill(token)

    @cached_property
    def splitter(self) -> SpecialTokenSplitter:
        """Cuts text at special tokens."""
        return SpecialTokenSplitter(self.control, left=self.pieces.left, right=self.pieces.right)

    @cached_property
    def _word_splitter(self) -> SpecialTokenSplitter:
        return SpecialTokenSplitter(self._words)

    def _is_infill(self, token: int | None) -> bool:
        """Whether text goes on behind this token as it went on before: CodeLlama's, in the middle of a text."""
        return token is not None and "<MID>" in self.pieces.texts[token]

    def _encode_plain(self, text: str, before: Before) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError("the text holds half a surrogate pair, which is no Unicode character",
                               code="invalid_unicode") from error
        try:
            return [token for part in self._parts(text, before) for token in part]
        except PASSED_ON:
            raise
        except BaseException as error:  # the library's panics are no Exception
            raise RequestError(f"the model's tokenizer cannot encode this text: {error}") from None

    def _parts(self, text: str, before: Before) -> Iterator[list[int]]:
        rules = self.rules
        if not self._words:
            yield self._match(self._prepared(text, before))
        elif rules.restarts:
            for part, token in self._cut(text):
                if token is not None:
                    yield [token]
                    before = "special"
                elif part:
                    yield self._match(self._prepared(part, before))
        else:
            prepared = self._prepared(text, before, keeps_words=True)
            parts = [(prepared, None)] if self.pieces.is_unigram else self._cut(prepared)
            for part, token in parts:
                yield self._match(part) if token is None else [token]

    def _cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text in parts, with the user-defined token that a part is."""
        for index, part in enumerate(self._word_splitter.split(text)):
            yield part, self._words[part] if index % 2 else None

    def _prepared(self, text: str, before: Before, *, keeps_words: bool = False) -> str:
        rules, is_text = self.rules, bool(text)
        for step in rules.steps:
            parts = self._cut(text) if keeps_words and step is not collapsed else [(text, None)]
            text = "".join(part if token is not None else step(part) for part, token in parts)
        text = text.replace(" ", SPACE)
        if rules.restarts:  # the library and llama.cpp look at what is left
            is_text = bool(text)
        if before in rules.prefixed and (rules.doubles or text[:1] != SPACE) and is_text:
            text = text + SPACE if rules.is_suffix else SPACE + text
        return text.rstrip(SPACE) if rules.removes_spaces and not rules.restarts else text


def is_marker(text: str) -> bool:
    """Whether a user-defined token marks turns or tools in chats, so that no text of a user may become it.

    The others are text that is never cut: runs of white space, tags of HTML.
    """
    return _BRACKETED.fullmatch(text) is not None and text.strip("</>").strip().lower() not in _HTML


def collapsed(text: str) -> str:
    """The text without the spaces at its ends, and one for each run: sentencepiece's remove_extra_whitespaces."""
    return re.sub(" {2,}", " ", text).strip(" ")


def merges_of(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE by scores, best first: every cut of a piece into two.

    Of pieces with one score (Mistral's runs of spaces) the leftmost pair is merged first, so that the longest left one
    has to come first here.
    """
    merges = [(-score, -cut, cut - len(piece), piece) for piece, score in pieces.items() if len(piece) > 1
              for cut in range(1, len(piece)) if piece[:cut] in pieces and piece[cut:] in pieces]
    if len(merges) > MAX_MERGES:
        raise bad_value("number of merges of the vocabulary", len(merges), f"at most {MAX_MERGES}")
    return [(piece[:-cut], piece[-cut:]) for _, cut, _, piece in sorted(merges, key=lambda merge: merge[:3])]


def _check(pieces: Pieces) -> None:
    if len(pieces.types) != len(pieces.texts) or (pieces.scores is not None
                                                  and len(pieces.scores) != len(pieces.texts)):
        raise CheckpointError(f"the vocabulary has {len(pieces.texts)} pieces, {len(pieces.types)} types and "
                              f"{len(pieces.scores or ())} scores", field="tokenizer.ggml.scores",
                              value=len(pieces.scores or ()), limit=len(pieces.texts))
    special_tokens.check_unicode(pieces.texts)
    largest = max(map(abs, pieces.scores or ()), default=0.0)
    if not largest <= MAX_SCORE:
        raise bad_value("size of a score of the vocabulary", largest, f"at most {MAX_SCORE:g}")
    longest = max(map(len, pieces.texts), default=0)
    if longest > MAX_PIECE:
        raise bad_value("length of a piece of the vocabulary", longest, f"at most {MAX_PIECE} characters")
    normal = [text for text, kind in zip(pieces.texts, pieces.types, strict=True) if kind == NORMAL]
    if len(set(normal)) != len(normal):
        raise CheckpointError("the vocabulary has the same piece twice", field="tokenizer.ggml.tokens")


def _byte_ids(texts: Sequence[str], types: Sequence[int]) -> Sequence[int] | None:
    """The ids of the 256 bytes; None where the vocabulary lacks some of them."""
    ids = {int(match[1], 16): index for index, kind in enumerate(types) if kind == BYTE
           and (match := _BYTE_PIECE.fullmatch(texts[index])) is not None}
    return [ids[byte] for byte in range(256)] if len(ids) == 256 else None


def _bpe(pieces: Pieces, rules: TextRules, byte_ids: Sequence[int] | None) -> Callable[[str], list[int]]:
    texts, types, unk = pieces.texts, pieces.types, pieces.unk_id
    words = {text: index for index, (text, kind) in enumerate(zip(texts, types, strict=True))
             if kind in (NORMAL, UNUSED) or (kind == USER_DEFINED and not is_marker(text))}
    if pieces.merges is None:
        scores = pieces.scores or [0.0] * len(texts)
        merges = merges_of({text: scores[index] for text, index in words.items() if types[index] != USER_DEFINED})
    else:  # transformers writes merges of special tokens, too
        special = set(texts) - words.keys()
        merges = [(left, right) for left, right in pieces.merges if left + right not in special]
    vocab = words | {texts[index]: index for index in byte_ids or ()}
    if unk is not None:
        vocab[texts[unk]] = unk
    with library_errors("the merges do not fit the tokens", "tokenizer.ggml.merges"):
        library = LibraryTokenizer(BPE(
            vocab=vocab, merges=list(merges), unk_token=None if unk is None else texts[unk],
            fuse_unk=pieces.fuses_unknown, byte_fallback=byte_ids is not None, ignore_merges=pieces.ignores_merges))
    _add_splits(library, rules)
    cut = _cut_unused(words, types, merges)
    if not cut:
        return lambda text: list(library.encode(text, add_special_tokens=False).ids)
    return lambda text: [part for token in library.encode(text, add_special_tokens=False).ids
                         for part in cut.get(token, (token,))]


def _cut_unused(words: Mapping[str, int], types: Sequence[int],
                merges: Sequence[tuple[str, str]]) -> Mapping[int, tuple[int, ...]]:
    """What stands for an unused piece that is merged on the way: the pieces it is merged from."""
    unused = {text for text, index in words.items() if types[index] == UNUSED}
    pairs = {left + right: (left, right) for left, right in reversed(merges if unused else ())
             if left + right in unused}

    def parts(text: str) -> tuple[int, ...]:
        return (words[text],) if text not in pairs else tuple(part for half in pairs[text] for part in parts(half))

    return {words[text]: parts(text) for text in sorted(pairs, key=len)}


def _unigram(pieces: Pieces, rules: TextRules, byte_ids: Sequence[int] | None,
             words: Mapping[str, int]) -> Callable[[str], list[int]]:
    """The best path of a Unigram over the pieces of text, and over user-defined `words`, which win nearly always.

    Not the library's: runs of one character have many best paths, and which one wins depends on the rounding of their
    scores, to 32 bits in sentencepiece and to 64 bits in the library.
    """
    scores = list(pieces.scores or ())
    normal = {text: index for index, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True))
              if kind == NORMAL}
    lowest = min((scores[index] for index in normal.values()), default=0.0)
    root: dict[object, Any] = {}
    for text, index in (*normal.items(), *words.items()):
        node = root
        for char in text:
            node = node.setdefault(char, {})
        node[None] = index
    for index in words.values():
        scores[index] = _WORD_SCORE
    unknown = array(rules.precision, [lowest - _UNKNOWN_PENALTY])[0]
    unk = [] if pieces.unk_id is None else [pieces.unk_id]

    def match(text: str) -> list[int]:
        out: list[int] = []
        was_unknown = False
        for start, end, token in _best_path(text, root, scores, unknown, rules.precision):
            if token is not None:
                out.append(token)
            elif byte_ids is not None:
                out += [byte_ids[byte] for byte in text[start:end].encode()]
            elif not was_unknown:
                out += unk
            was_unknown = token is None
        return out

    if not rules.splits:
        return match
    word = re.compile(f"[^{SPACE}]+{SPACE}?|{SPACE}" if rules.is_suffix else f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")
    return lambda text: [token for part in word.findall(text) for token in match(part)]


def _best_path(text: str, root: Mapping[object, Any], scores: Sequence[float], unknown: float,
               precision: str) -> list[tuple[int, int, int | None]]:
    """The path with the highest sum of scores: start, end and id of each piece; None of a character without one.

    As in sentencepiece's unigram_model.cc, EncodeOptimized: of equal sums the one that is found first wins.
    """
    count = len(text)
    cell = array(precision, [0.0])
    best = cell * (count + 1)
    starts, tokens = array("q", [-1]) * (count + 1), array("q", [-1]) * (count + 1)
    for start in range(count):
        here, is_known = best[start], False
        node: Any = root
        for end in range(start + 1, count + 1):
            node = node.get(text[end - 1])
            if node is None:
                break
            token = node.get(None)
            if token is not None:
                cell[0] = scores[token] + here  # rounds
                if starts[end] < 0 or cell[0] > best[end]:
                    best[end], starts[end], tokens[end] = cell[0], start, token
                is_known = is_known or end == start + 1
        if not is_known:
            cell[0] = unknown + here
            if starts[start + 1] < 0 or cell[0] > best[start + 1]:
                best[start + 1], starts[start + 1], tokens[start + 1] = cell[0], start, -1
    path: list[tuple[int, int, int | None]] = []
    while count:
        token = tokens[count]
        path.append((starts[count], count, None if token < 0 else token))
        count = starts[count]
    return path[::-1]


def _add_splits(library: LibraryTokenizer, rules: TextRules) -> None:
    if rules.splits:
        library.pre_tokenizer = Split(SPACE, "merged_with_previous" if rules.is_suffix else "merged_with_next")


def _spaced(text: str) -> str:
    return text.replace(SPACE, " ")
