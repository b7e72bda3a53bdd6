"""Parity finds nothing where there is nothing, and names what was planted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brise.errors import EvidenceError
from brise.models.weights import LowRank
from brise.quant.quality import QuantQuality
from brise.text.chat import ChatTemplate
from brise.tune.parity import parity, templates
from brise.tune.parity import served as sides
from brise.tune.parity.parity import ParityError, ParityPair, ParityReport, Tolerance

from .parity_models import Tiny, tiny

# The reference ops and torch both compute in float32: what is left is rounding.
STRICT = Tolerance(max_mean_kl=1e-6, min_agreement=0.99)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("parity"))


def compared(model: Tiny, trained: Mapping[str, LowRank], served: Mapping[str, LowRank]) -> ParityReport:
    return parity.run(model.pair(trained, served), model.base(), model.rows, tolerance=STRICT)


def test_the_same_model_passes(model: Tiny) -> None:
    report = compared(model, model.adapter(), model.adapter()).check()
    assert report.quality.kl_max < 1e-6 and report.quality.top1_agreement == 1
    assert report.quality.num_tokens == sum(row.num_targets for row in model.rows)
    assert report.parting is not None and not report.parting.names and report.where is None


def test_a_model_with_a_layer_without_rope_passes(tmp_path: Path) -> None:
    model = tiny(tmp_path, "smollm3")
    assert model.config.layers_without_rope == (3,)
    report = compared(model, model.adapter(), model.adapter()).check()
    assert report.quality.kl_max < 1e-6 and report.quality.top1_agreement == 1


@pytest.mark.parametrize("family", ["granite", "phi3", "gemma3"])
def test_models_with_multipliers_joined_matrices_and_windows_pass(tmp_path: Path, family: str) -> None:
    model = tiny(tmp_path, family, "Q8_0")
    report = compared(model, model.adapter(), model.adapter()).check()
    assert report.quality.kl_max < 1e-6 and report.quality.top1_agreement == 1
    assert compared(model, model.adapter(), {}).quality.kl_mean > 0.01


def test_the_adapter_matters(model: Tiny) -> None:
    report = compared(model, model.adapter(), {})
    assert report.quality.kl_mean > 0.01 and not report.passed
    assert report.base is not None and report.base.kl_mean < 1e-6


@pytest.mark.parametrize(("path", "name"), [
    ("layers.0.attention.wv", "layers.0.attention.out"), ("layers.1.attention.wo", "layers.1.attention.out"),
    ("layers.0.feed_forward.w2", "layers.0.feed_forward.out"),
    ("layers.1.feed_forward.w1", "layers.1.feed_forward.out")])
def test_one_spoiled_matrix_is_named_by_its_layer(model: Tiny, path: str, name: str) -> None:
    adapter = model.adapter()
    spoiled = replace(adapter[path], b=np.roll(adapter[path].b, 1, axis=0))
    report = compared(model, adapter, {**adapter, path: spoiled})
    assert report.parting is not None and report.parting.names == (name,)
    assert name in str(report.where)
    with pytest.raises(ParityError, match="mean KL is"):
        report.check()


def test_a_wrong_scale_parts_from_the_first_layer_on(model: Tiny) -> None:
    adapter = model.adapter()
    report = compared(model, adapter, {path: replace(own, scale=own.scale / 2) for path, own in adapter.items()})
    assert report.parting is not None and report.parting.first == "layers.0.attention.out"
    assert len(report.parting.names) == 2 * model.config.num_layers


def test_an_adapter_that_changes_little_is_measured_by_the_base(model: Tiny) -> None:
    adapter = model.adapter(size=0.02)
    halved = {path: replace(own, scale=own.scale / 2) for path, own in adapter.items()}
    report = parity.run(model.pair(adapter, halved), model.base(), model.rows, tolerance=Tolerance(1.0, 0.0))
    assert "without the adapter" in report.failures[0] and "layers.0.attention.out" in str(report.where)
    lenient = parity.run(model.pair(adapter, halved), model.base(), model.rows, tolerance=Tolerance(1.0, 0.0, None))
    assert lenient.passed and "stands out, within the tolerance" in str(lenient.where)


def test_a_forgotten_permutation_of_queries_is_found_in_attention(model: Tiny) -> None:
    adapter = model.adapter()
    heads, half = model.config.num_heads, model.config.head_dim // 2
    def turned(b: np.ndarray) -> np.ndarray:
        return b.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(b.shape)
    served = {path: replace(own, b=turned(own.b)) if path.endswith("wq") else own for path, own in adapter.items()}
    report = compared(model, adapter, served)
    assert report.parting is not None
    assert report.parting.names == ("layers.0.attention.out", "layers.1.attention.out")


def test_without_a_base_the_jump_is_found_as_well(model: Tiny) -> None:
    adapter = model.adapter()
    path = "layers.1.feed_forward.w2"
    pair = model.pair(adapter, {**adapter, path: replace(adapter[path], b=-adapter[path].b)})
    report = parity.run(pair, None, model.rows, tolerance=STRICT)
    assert report.base is None and report.parting is not None
    assert report.parting.first == "layers.1.feed_forward.out"


def test_a_base_that_parts_by_itself_is_said(model: Tiny, tmp_path: Path) -> None:
    other = tiny(tmp_path, seed=1)
    adapter = model.adapter()
    report = parity.run(ParityPair(model.trained(adapter), other.reference(adapter)),
                        ParityPair(model.trained(), other.reference()), model.rows, tolerance=STRICT)
    assert "the base by itself is over the tolerance; they part in embedding" in str(report.where)


def test_numbers_that_are_none_are_a_failure(model: Tiny) -> None:
    adapter = model.adapter()
    path = "layers.1.attention.wo"
    broken = {**adapter, path: replace(adapter[path], scale=float("nan"))}
    report = compared(model, adapter, broken)
    assert not report.passed and report.parting is not None and report.parting.first == "layers.1.attention.out"
    json.dumps(report.as_json(), allow_nan=False)


def test_another_template_is_named_with_its_tokens(model: Tiny) -> None:
    chat = model.tokens.chat
    assert isinstance(chat, ChatTemplate)
    changed = ChatTemplate(chat.source.replace("\\n' + message['content']", " ' + message['content']").replace(
        "assistant\\n", "assistant "), model.tokens.tokenizer)
    assert templates.check(model.tokens, model.examples, model.rows) == []
    faults = templates.check(replace(model.tokens, chat=changed), model.examples, model.rows)
    assert len(faults) == len(model.examples) and faults[0].place == "data.jsonl:1"
    assert "trained: <|im_start|>" in str(faults[0]) and "differs at token" in str(faults[0])
    report = parity.run(model.pair(), None, model.rows, template_faults=faults, num_templates=8, tolerance=STRICT)
    assert "8 of 8 conversations" in report.failures[0] and "the chat template" in str(report.where)


def test_few_tokens_leave_room_for_chance() -> None:
    few = QuantQuality(12, 4, 1.0, 1.0, 0.001, None, 0.01, 11 / 12)
    assert not Tolerance().exceeded(few)
    assert "less 1.61% for chance" in Tolerance().exceeded(replace(few, num_tokens=1000, top1_agreement=0.91))[0]


def test_nothing_to_compare_is_refused(model: Tiny) -> None:
    with pytest.raises(EvidenceError, match="no held-out row"):
        parity.run(model.pair(), None, [])


def test_rows_in_groups_are_rows_one_by_one(model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = model.pair(model.adapter(), model.adapter(seed=1))
    whole = parity.compare(pair, model.rows)
    monkeypatch.setattr(sides, "LOGITS", 3 * model.config.vocab_size)
    monkeypatch.setattr(parity, "groups", lambda rows: ([row] for row in rows))
    parts = parity.compare(pair, model.rows)
    assert parts.num_windows == whole.num_windows == len(model.rows)
    assert parts.kl_mean == pytest.approx(whole.kl_mean, rel=1e-4)


def test_the_engine_s_kernels_agree_with_the_trainer(tmp_path: Path) -> None:
    model = tiny(tmp_path, format="Q8_0")
    report = parity.run(ParityPair(model.trained(), model.native()), None, model.rows, tolerance=Tolerance(0.02, 0.9))
    assert report.passed, report.failures
