"""The options of a proof: where the pairs come from, who answers, what is claimed, and how answers are scored.

The defaults are those of `brise prove`, and `check` is the one place that refuses contradictions. Its messages
name the options of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from brise.errors import EvidenceError
from brise.prove.proof import Terms
from brise.prove.scoring import JUDGED_SHARE
from brise.stats.labels import LabelSource

SETTLE_S = 3600.0
EXPIRES_DAYS = 30
MAX_TOKENS, PARALLEL = 256, 16  # as `brise eval` has them


@dataclass(frozen=True)
class PairOptions:
    """Which pairs of answers: those of a `log`, or those of a `task` in the `store` of captured traffic.

    `small_model` names the small model where several answered in the shadow. `cluster` is the label that tells
    independent clusters apart; None: the conversation. Of a captured conversation only its first `settle_s` seconds
    count. Times are seconds since the epoch. `skip_bad`: rows of the log that cannot be read are counted, not refused.
    """

    log: Path | None = None
    task: str | None = None
    store: str | None = None
    small_model: str | None = None
    judgements: Path | None = None
    since_s: float | None = None
    until_s: float | None = None
    any_context: bool = False
    cluster: str | None = None
    settle_s: float = SETTLE_S
    skip_bad: bool = False


@dataclass(frozen=True)
class LiveOptions:
    """Two models that answer the examples of `data` now: the small one at `endpoint` (or on this machine), the large
    one at `large_endpoint`.

    Names of environment variables hold the keys. `answers` is the folder in which answers are kept. `conversation`
    are the fields that tell conversations apart.
    """

    data: tuple[Path, ...] = ()
    endpoint: str | None = None
    name: str | None = None
    key_env: str | None = None
    large_endpoint: str | None = None
    large_name: str | None = None
    large_key_env: str | None = None
    reask: bool = False
    answers: Path | None = None
    conversation: tuple[str, ...] = ()
    max_tokens: int = MAX_TOKENS
    parallel: int = PARALLEL


@dataclass(frozen=True)
class ScoringOptions:
    """How answers are scored: by the best `label_source` there is, unless one is named.

    `draw` is the share of a judge's opinions that people were asked about. References are compared by `score`, a name,
    or by `scorer`, FILE.py:FUNCTION; `figure` is the figure of it that counts.
    """

    label_source: LabelSource | None = None
    draw: float | None = None
    score: str | None = None
    scorer: str | None = None
    figure: str | None = None

    @property
    def drawn_share(self) -> float:
        return self.draw or JUDGED_SHARE


@dataclass(frozen=True)
class SmallModelOptions:
    """What the small model is: a name of the store or a path, and the folder of its adapter. Both go by digest into
    the certificate, and with live data the model answers.
    """

    model: str | None = None
    adapter: Path | None = None
    any_base: bool = False


@dataclass(frozen=True)
class ProveOptions:
    """All options of a proof. `terms` has the margins as shares (0.02 is 2 points); its `candidate` is set by the run.

    `discordance` is the share of answers that will differ, where it is stated for the plan. `train` is what the small
    model was tuned on. A promotion on captured traffic leaves a certificate; one on a log or live data does so only
    if `certificate` names its file.
    """

    pairs: PairOptions = field(default_factory=PairOptions)
    live: LiveOptions = field(default_factory=LiveOptions)
    small: SmallModelOptions = field(default_factory=SmallModelOptions)
    terms: Terms = field(default_factory=Terms)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    discordance: float | None = None
    candidate: int | None = None
    train: tuple[Path, ...] = ()
    certificate: Path | None = None
    expires_days: int = EXPIRES_DAYS
    plan_only: bool = False


def check(options: ProveOptions) -> None:
    """EvidenceError that names the options which contradict each other."""
    pairs, live, small = options.pairs, options.live, options.small
    if live.data:
        _check_live(pairs, live, small)
    else:
        _check_not_live(live)
    if options.candidate is not None and ((pairs.log is None and not live.data) or pairs.store is not None):
        raise EvidenceError("--candidate is for a log: the store's ledger knows which candidates were tried")
    weighting = options.terms.weighting
    if weighting.per == "conversation" and weighting.most_rows is not None:
        raise EvidenceError("--per conversation and --rows-per-conversation are both given, one is allowed: where "
                            "conversations weigh alike, all of their answers count")
    if small.any_base and small.adapter is None:
        raise EvidenceError("--any-base needs --adapter FOLDER")
    if options.scoring.score is not None and options.scoring.scorer is not None:
        raise EvidenceError("--score and --scorer are both given, one is allowed")


def check_named(pairs: PairOptions) -> None:
    """EvidenceError if nothing says where the pairs are."""
    if pairs.log is None and pairs.task is None:
        raise EvidenceError("nothing says where the answers are",
                            hint="--task TASK in captured traffic, or --pairs FILE, a log that has both answers")


def _check_live(pairs: PairOptions, live: LiveOptions, small: SmallModelOptions) -> None:
    """Live models need both of them, and nothing that selects pairs which exist already."""
    for option, value in (("pairs", pairs.log), ("judgements", pairs.judgements), ("since", pairs.since_s),
                          ("until", pairs.until_s), ("small-model", pairs.small_model), ("cluster", pairs.cluster)):
        if value is not None:
            raise EvidenceError(f"--{option} and DATA are both given, one is allowed")
    if (small.model is None) == (live.endpoint is None):
        raise EvidenceError("with DATA the small model is either --model or --endpoint")
    if live.large_endpoint is None:
        raise EvidenceError("with DATA the large model is needed: --large-endpoint URL --large-name NAME")
    if live.large_name is None:
        raise EvidenceError("--large-endpoint needs --large-name")
    if live.endpoint is not None and live.name is None:
        raise EvidenceError("--endpoint needs --name")


def _check_not_live(live: LiveOptions) -> None:
    for option, value in (("endpoint", live.endpoint), ("name", live.name), ("key-env", live.key_env),
                          ("large-endpoint", live.large_endpoint), ("large-name", live.large_name),
                          ("large-key-env", live.large_key_env), ("reask", live.reask), ("answers", live.answers),
                          ("conversation", live.conversation)):
        if value:
            raise EvidenceError(f"--{option} goes with DATA, which both models are asked now")
