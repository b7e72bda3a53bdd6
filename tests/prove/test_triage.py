"""Triage: who answers, what is kept with a guarantee, and what a person sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.cli.main import main
from brise.errors import EvidenceError, OutputError
from brise.evals.example import EvalAnswer, EvalExample
from brise.prove import triage
from brise.prove.triage import SmallTier, TriageOptions
from brise.stats.thresholds import RiskClaim

WORDS = {"scan": "port nmap sweep probe", "phish": "mail link password login", "ransom": "encrypt files pay bitcoin"}


def rows(count: int, seed: int, noise: float = 0.0) -> str:
    """Sentences of a label's words; a noisy one has words of all labels, so that nobody can tell."""
    random, out = np.random.default_rng(seed), []
    for number in range(count):
        label = str(random.choice(list(WORDS)))
        every = " ".join(WORDS.values()).split()
        words = random.choice(every if random.random() < noise else WORDS[label].split(), 5)
        out.append(json.dumps({"prompt": f"{' '.join(map(str, words))} {seed}{number}", "completion": label}) + "\n")
    return "".join(out)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"train": rows(200, 1), "cal": rows(400, 2, 0.3), "test": rows(400, 3, 0.3), "few": rows(60, 4)}
    paths = {name: tmp_path / f"{name}.jsonl" for name in made}
    for name, text in made.items():
        paths[name].write_text(text)
    return paths


def test_what_is_kept_holds_the_claim_and_the_rest_is_for_a_person(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = TriageOptions((files["train"],), (files["cal"],), tmp_path / "out", (files["test"],))
    made = triage.fit(options)
    alone, whole = made.test
    assert made.answers == "linear" and made.threshold is not None
    assert whole.kept is not None and whole.error is not None
    assert alone.accuracy.estimate < 0.9 and whole.error.low <= 0.05 and 0.5 < whole.kept.estimate < 0.95
    assert triage.read(tmp_path / "out") == made
    found = triage.sort(tmp_path / "out", [files["test"]])
    kept = sum(row.by == "linear" for row in found)
    assert kept == round(whole.kept.estimate * 400) and {row.by for row in found} == {"linear", "person"}
    with pytest.raises(OutputError, match="holds a triage already"):
        triage.fit(options)
    (tmp_path / "out" / triage.ROWS).write_text(rows(20, 9))
    with pytest.raises(EvidenceError, match="has changed"):
        triage.sort(tmp_path / "out", [files["test"]])


def test_the_command_says_what_is_impossible(files: dict[str, Path], tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    words = ["triage", "fit", str(files["train"]), "--calibrate", str(files["cal"]), "--out"]
    assert main([*words, str(tmp_path / "a"), "--test", str(files["test"])]) == 0
    assert "at most 5 % are wrong" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "b"), "--risk", "0.1"]) == 3
    assert "A person sees everything" in capsys.readouterr().out
    assert main(["triage", "sort", str(files["test"]), "--with", str(tmp_path / "b"), "--out",
                 str(tmp_path / "labels.jsonl")]) == 0
    assert "400 rows: 400 by a person" in capsys.readouterr().out
    assert {json.loads(line)["by"] for line in (tmp_path / "labels.jsonl").read_text().splitlines()} == {"person"}
    few = ["triage", "fit", str(files["train"]), "--calibrate", str(files["few"]), "--out", str(tmp_path / "c")]
    assert main(few) == 1 and "at least 90" in capsys.readouterr().err
    assert main(["triage", "sort", str(files["few"]), "--with", str(tmp_path), "--out", str(tmp_path / "d")]) == 1


class Planted:
    """Tiers that are right as often as is planted: the linear one by its lead, the small one always so often."""

    def __init__(self, small: float, seed: int) -> None:
        self.small, self.random = small, np.random.default_rng(seed)

    def __call__(self, train: Sequence[EvalExample], examples: Sequence[EvalExample], labels: Sequence[str],
                 small: SmallTier | None, watcher: Any) -> dict[str, Any]:
        draw, count = self.random, len(examples)
        lead = draw.uniform(0, 1, count)
        tiers = {"linear": self._tier(examples, draw.random(count) < np.where(lead > 0.5, 0.995, 0.6), lead)}
        if small is not None:
            tiers["small"] = self._tier(examples, draw.random(count) < self.small_chances(count),
                                       draw.uniform(-1, 0, count))
        return tiers

    def small_chances(self, count: int) -> Any:
        """How likely the small model is right, row by row."""
        return self.small

    def _tier(self, examples: Sequence[EvalExample], right: Any, confidences: Any) -> Any:
        given = [each.reference.text if is_right else "nothing" for each, is_right in zip(examples, right, strict=True)]
        return triage._Tier(given, confidences)


@pytest.mark.parametrize(("small", "answers"), [(0.995, "small"), (0.3, "linear"), (None, "linear")])
def test_the_small_model_answers_only_where_it_is_worth_it(small: float | None, answers: str, files: dict[str, Path],
                                                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(triage, "_tiers", Planted(small or 0.0, 5))
    made = triage.fit(TriageOptions((files["train"],), (files["cal"],), tmp_path / "out",
                                    small=None if small is None else SmallTier("smollm2")))
    whole = made.figures[-1]
    assert whole.kept is not None and whole.by_tier is not None
    if answers == "linear":
        assert made.answers == "linear" and made.small is None and 0.3 < whole.kept.estimate < 0.8
    else:  # it is right where the linear one is not sure, or everywhere
        assert made.answers in ("small", "cascade") and whole.by_tier["small"] > 100 and whole.kept.estimate > 0.9


class Worse(Planted):
    """The small model is right on the rows that choose, and seldom on those that certify."""

    def small_chances(self, count: int) -> Any:
        return np.where(np.arange(count) < count / 3, 0.995, self.small)


def test_a_small_model_that_disappoints_costs_nothing_of_what_the_linear_one_keeps(
        files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(triage, "_tiers", Worse(0.5, 5))
    made = triage.fit(TriageOptions((files["train"],), (files["cal"],), tmp_path / "out", small=SmallTier("smollm2")))
    whole = made.figures[-1]
    assert made.answers == "linear" and made.small is None and made.threshold is not None
    assert whole.kept is not None and 0.3 < whole.kept.estimate < 0.8 and made.bound <= 0.05


def test_two_tries_break_no_more_often_than_one(repetitions: Callable[[int], int]) -> None:
    """Both models' errors are the claim's at every confidence."""
    runs = repetitions(1000)
    broken, random = 0, np.random.default_rng(12)
    examples = [EvalExample(({"role": "user", "content": str(at)},), EvalAnswer("yes"), str(at), str(at), str(at))
                for at in range(300)]
    earlier, later = triage._split(examples)
    for _ in range(runs):
        tiers = {name: triage._Tier(["no" if each else "yes" for each in random.random(300) < 0.05 + 1e-6],
                                    random.uniform(0, 1, 300)) for name in ("linear", "small")}
        curves = {name: triage._curve(tier.of(earlier), [examples[at] for at in earlier])
                  for name, tier in tiers.items()}
        _, _, found, _ = triage._certified(tiers, curves, ("cascade", 0.95), examples, (earlier, later),
                                           RiskClaim(0.05, 0.05))
        broken += found is not None
    assert broken <= runs * 0.05 + 3 * (runs * 0.05 * 0.95) ** 0.5


def test_the_guarantee_breaks_no_more_often_than_it_says(repetitions: Callable[[int], int]) -> None:
    """Labels whose error is the claim's at every confidence: any threshold that is certified keeps too many."""
    runs = repetitions(1000)
    broken, random = 0, np.random.default_rng(11)
    examples = [EvalExample(({"role": "user", "content": str(at)},), EvalAnswer("yes"), str(at), str(at), str(at))
                for at in range(300)]
    for _ in range(runs):
        confidences = random.uniform(0, 1, len(examples))
        wrong = random.random(len(examples)) < 0.05 + 1e-6
        tier = triage._Tier(["no" if each else "yes" for each in wrong], confidences)
        earlier, later = triage._split(examples)
        curves = {"linear": triage._curve(tier.of(earlier), [examples[at] for at in earlier])}
        found, _ = triage._certify({"linear": tier}, curves, 0.0, examples, (earlier, later), RiskClaim(0.05, 0.05))
        broken += found is not None
    assert broken <= runs * 0.05 + 3 * (runs * 0.05 * 0.95) ** 0.5
