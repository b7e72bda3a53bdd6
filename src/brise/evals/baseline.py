"""Baselines that cost nothing to run: the most frequent answer, and TF-IDF with a linear model or nearest neighbour.

A language model that does not beat them is not worth its memory. They are answerers like any model, so that the same
scorer scores their answers on the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from brise.errors import EvidenceError, MissingExtraError
from brise.evals.example import EvalAnswer, EvalExample
from brise.files.digests import text_digest
from brise.text.conversation import plain_text

Kind = Literal["majority", "tfidf"]
# Words and word pairs, and character n-grams of 2 to 5 within words: the usual features of short texts.
WORDS, CHARACTERS = (1, 2), (2, 5)


class BaselineAnswerer:
    """Learns its answers from `train`. For a classification TF-IDF trains a linear model.

    For other tasks it copies the answer of the training example with the most similar prompt.
    """

    parallel = 1

    def __init__(self, kind: Kind, train: Sequence[EvalExample], *, classifies: bool) -> None:
        self._kind, self._train, self._classifies = kind, train, classifies
        self._answers: Mapping[str, EvalAnswer] = {}
        self.name: str = kind
        if kind == "tfidf":
            self.name = "TF-IDF + linear" if classifies else "TF-IDF + nearest neighbour"

    def identity(self) -> Mapping[str, object]:
        """The method, and the digest of the training examples."""
        rows = text_digest("".join(example.digest for example in self._train))
        return {"baseline": self.name, "train": rows}

    def prepare(self, examples: Sequence[EvalExample]) -> None:
        """Trains, and answers all examples at once."""
        if self._kind == "majority":
            chosen = [majority(self._train)] * len(examples)
        elif self._classifies:
            chosen = _classified(self._train, examples)
        else:
            chosen = _nearest(self._train, examples)
        self._answers = {example.digest: answer for example, answer in zip(examples, chosen, strict=True)}

    def answer(self, example: EvalExample) -> EvalAnswer:
        """The answer that `prepare` computed."""
        return self._answers[example.digest]

    def close(self) -> None:
        """Does nothing: no work goes on."""


def without(train: Sequence[EvalExample], evaluated: Sequence[EvalExample]) -> tuple[EvalExample, ...]:
    """The training examples of conversations that are not evaluated; EvidenceError if none is left."""
    seen = {example.conversation for example in evaluated}
    kept = tuple(example for example in train if example.conversation not in seen)
    if not kept:
        raise EvidenceError(f"all {len(train)} rows of --train are of conversations that are evaluated",
                            hint="give the part of the data that the model was tuned on")
    return kept


def majority(train: Sequence[EvalExample]) -> EvalAnswer:
    """The most frequent answer; the first of equally frequent ones."""
    return Counter(example.reference for example in train).most_common(1)[0][0]


def texts_of(train: Sequence[EvalExample], examples: Sequence[EvalExample]) -> tuple[list[str], list[str]]:
    """The texts of both sets; system messages are included only if they differ between training examples."""
    systems = {_written(example, is_system=True) for example in train}

    def text(example: EvalExample) -> str:
        own = _written(example, is_system=False)
        return f"{_written(example, is_system=True)}\n{own}" if len(systems) > 1 else own

    return [text(example) for example in train], [text(example) for example in examples]


def _written(example: EvalExample, *, is_system: bool) -> str:
    return "\n".join(plain_text(message.get("content")) for message in example.prompt
                     if (message["role"] in ("system", "developer")) == is_system)


def classified(train: Sequence[EvalExample], examples: Sequence[EvalExample]) -> list[tuple[str, float]]:
    """The label of each example by a linear model of TF-IDF, and its lead over the next label, in margins of the SVM.

    The same rows and the same version of scikit-learn give the same labels and leads.
    """
    labels = [example.reference.text.strip() for example in train]
    if len(set(labels)) == 1:
        return [(labels[0], 0.0)] * len(examples)
    known, asked = _features(*texts_of(train, examples))
    model = _sklearn("svm").LinearSVC(random_state=0)
    model.fit(known, labels)
    margins = np.asarray(model.decision_function(asked), np.float64)
    if margins.ndim == 1:  # of two labels it gives one margin
        margins = np.column_stack([-margins, margins])
    ranked = np.sort(margins, axis=1)
    leads = ranked[:, -1] - ranked[:, -2]
    return [(str(model.classes_[at]), float(lead)) for at, lead in zip(margins.argmax(axis=1), leads, strict=True)]


def sklearn_version() -> str:
    """The version that learns, on which the linear model depends; MissingExtraError without it."""
    _sklearn("svm")
    return version("scikit-learn")


def _classified(train: Sequence[EvalExample], examples: Sequence[EvalExample]) -> list[EvalAnswer]:
    labels = [example.reference.text.strip() for example in train]
    if len(set(labels)) == 1:
        return [EvalAnswer(labels[0])] * len(examples)
    known, asked = _features(*texts_of(train, examples))
    return [EvalAnswer(str(label)) for label in linear_model(known, labels)(asked)]


def _nearest(train: Sequence[EvalExample], examples: Sequence[EvalExample]) -> list[EvalAnswer]:
    known, asked = _features(*texts_of(train, examples))
    copied = [replace(example.reference) for example in train]
    return [copied[at] for at in most_similar(known, asked)]


def linear_model(known: Any, labels: Sequence[Any]) -> Callable[[Any], Any]:
    """A linear classifier of features (N, F), trained on N labels: it gives the labels of other features."""
    model = _sklearn("svm").LinearSVC(random_state=0)
    model.fit(known, labels)
    predict: Callable[[Any], Any] = model.predict
    return predict


def most_similar(known: Any, asked: Any) -> Iterator[int]:
    """The index of the most similar row of `known` (N, F) for each row of `asked` (M, F).

    Rows have unit length, so that the largest product is the largest cosine; some hundred rows at a time.
    """
    for start in range(0, asked.shape[0], 256):
        products = (asked[start:start + 256] @ known.T).toarray()
        yield from (int(at) for at in products.argmax(1))


def _features(train: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
    union, known = vectorized(train)
    return known, union.transform(texts)


def vectorized(train: Sequence[str]) -> tuple[Any, Any]:
    """TF-IDF of words, word pairs and characters, and the features of N texts (N, F); EvidenceError without a word."""
    vectorizer: Callable[..., Any] = _sklearn("feature_extraction.text").TfidfVectorizer
    union = _sklearn("pipeline").FeatureUnion([
        ("words", vectorizer(ngram_range=WORDS, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")),
        ("characters", vectorizer(analyzer="char_wb", ngram_range=CHARACTERS, sublinear_tf=True))])
    try:
        return union, union.fit_transform(train)
    except ValueError as error:  # no word in any prompt
        raise EvidenceError(f"the training rows have no text to learn from: {error}") from None


def _sklearn(name: str) -> Any:
    try:
        return import_module(f"sklearn.{name}")
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval", "the TF-IDF baseline") from None
