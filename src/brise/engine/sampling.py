"""How an answer is sampled: as its request says, else as the model's makers suggest, else in a usual way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from brise.engine.request import Sampling
from brise.text.inputs import PartialSampling

# Settings that belong together: where one of a group is said, the usual values of the others do not fit to it.
_DISTRIBUTION = ("temperature", "top_k", "top_p", "min_p")
_REPETITION = ("repetition_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty")


def resolve(requested: PartialSampling, suggested: PartialSampling, usual: Sampling) -> Sampling:
    """The sampling of an answer. A request for temperature 0 is greedy: no suggested or usual penalty changes that."""
    given, own = requested.given, suggested.given
    if requested.temperature == 0:
        return _with(Sampling(), given)
    if any(name in own for name in (*_DISTRIBUTION, *_REPETITION)):
        usual = replace(usual, repetition_penalty=1.0, repeat_last_n=-1, penalizes_prompt=True)
    if any(name in own for name in _DISTRIBUTION):
        usual = Sampling()
    if any(name in given for name in _REPETITION):
        usual = replace(usual, repetition_penalty=1.0, repeat_last_n=-1, penalizes_prompt=True)
    return _with(_with(usual, own), given)


def _with(sampling: Sampling, settings: Mapping[str, object]) -> Sampling:
    return replace(sampling, **settings)  # type: ignore[arg-type]
