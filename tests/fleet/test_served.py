"""How a bundle is served: the words of its server, and the switch that its certificate and its rule make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import base_digest
from brise.files.digests import Located
from brise.fleet import served
from brise.fleet.bundle import Blob, Bundle, BundleBase
from brise.fleet.install_state import InstalledBundle
from brise.fleet.refusals import UnfitError
from brise.fleet.served import ServingOptions
from brise.prove import certificates
from brise.settings import Settings
from brise.stats.certificate import CertifiedModel
from brise.switch.rule import Rule, from_body, to_body
from brise.switch.state import TaskState, fold
from brise.traffic.records import Exchange, Mode
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.cli.test_switch import signed
from tests.fleet.bundles import bundle
from tests.page.test_traffic import RULE

TRAINED, SERVED = "ab" * 16, "0f" * 16  # fingerprints: of the adapter that was certified, and of the one in the bundle


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(open_store(tmp_path / "traffic.sqlite", tmp_path / "home")) as opened:
        yield opened


def rule() -> Rule:
    return from_body(to_body(replace(RULE, task="calls", candidate="small", fingerprint=TRAINED)))


def proven(folder: Path, expires_s: float, *, version: int = 1) -> Bundle:
    """A bundle with a certificate and a rule of the adapter as it was trained."""
    path = folder / "certificate.json"
    path.unlink(missing_ok=True)
    certificates.write(signed(folder, student=CertifiedModel("small", fingerprint=TRAINED), expires_at_s=expires_s),
                       path)
    return bundle(name="tickets", version=version, task="calls", rule=to_body(rule()),
                  certificate=Blob("certificate.json", "ab" * 32, path.stat().st_size), certified=TRAINED)


def state_of(store: SqlStore) -> TaskState:
    return fold(store.ledger()).tasks["calls"]


def test_the_certificate_and_the_rule_act_for_the_bundle_as_it_is_served(store: SqlStore, tmp_path: Path) -> None:
    now_s = time.time()
    made = proven(tmp_path, now_s + 1e6)
    served.settle_switch(store, made, tmp_path, now_s, in_trial=True)
    state = state_of(store)
    assert state.is_on and state.share == 1.0 and state.candidate == "tickets"
    assert state.is_certified_for(SERVED) and not state.is_certified_for(TRAINED)
    assert state.warrant is not None and state.warrant.expires_s == now_s + 1e6
    assert state.rule is not None and state.rule.threshold == RULE.threshold
    assert state.audit_probability == 0.5  # on trial
    number = store.last_line()
    served.settle_switch(store, made, tmp_path, now_s, in_trial=False)
    assert store.last_line() == number


def test_the_bundle_that_answers_next_takes_the_switch_over(store: SqlStore, tmp_path: Path) -> None:
    now_s = time.time()
    first, second = (proven(tmp_path, now_s + 1e6, version=number) for number in (1, 2))
    for made in (first, second, first):
        served.settle_switch(store, made, tmp_path, now_s, in_trial=False)
    assert [entry.body["bundle"] for entry in store.ledger() if entry.kind == "switch"] == [
        first.digest, second.digest, first.digest]
    served.settle_switch(store, bundle(task=None), tmp_path, now_s, in_trial=False)
    assert state_of(store).ended == "tickets 3 answers now"


def test_an_expired_certificate_leaves_the_stricter_rule_and_never_silence(store: SqlStore, tmp_path: Path) -> None:
    now_s = time.time()
    made = proven(tmp_path, now_s + 1e6)
    served.settle_switch(store, made, tmp_path, now_s, in_trial=False)
    assert not served.keep_on_strictly(store, made)
    store.append("void", {"task": "calls", "reason": "the certificate has expired"})  # as a gateway writes it
    assert served.keep_on_strictly(store, made)
    state = state_of(store)
    assert state.is_on and state.warrant is None and not state.is_expired(now_s + 1e9)
    assert state.rule is not None and state.rule.threshold == RULE.tight > RULE.threshold
    assert state.is_certified_for(SERVED) and not served.keep_on_strictly(store, made)
    assert served.end_strict(store, made)
    assert not state_of(store).is_on and not served.end_strict(store, made)


def test_a_certificate_that_has_expired_when_it_comes_begins_strictly(store: SqlStore, tmp_path: Path) -> None:
    made = proven(tmp_path, time.time() - 10)
    served.settle_switch(store, made, tmp_path, time.time(), in_trial=False)
    state = state_of(store)
    assert state.is_on and state.warrant is None and state.rule is not None and state.rule.threshold == RULE.tight


def test_a_device_is_away_while_the_large_model_does_not_answer(store: SqlStore) -> None:
    assert served.is_away(store, has_large_model=False)
    assert not served.is_away(store, has_large_model=True)
    modes: Sequence[tuple[Mode, bool]] = (("degraded", True), ("small", True), ("escalated", False))
    for number, (mode, is_away) in enumerate(modes):
        store.add([Exchange(f"{number:032x}", 1000.0 + number, "calls", "chat", "/v1/chat/completions", "large", mode,
                            200, "c")])
        assert served.is_away(store, has_large_model=True) is is_away


def test_the_words_of_its_server(tmp_path: Path) -> None:
    base = BundleBase("smollm2", "cd" * 32, 4, (Blob("base/model.gguf", "cd" * 32, 4),))
    made = bundle(base=base)
    options = ServingOptions(Settings(tmp_path), tmp_path / "traffic.sqlite", more=("--api-keys", "keys"))
    order = served.order_of(InstalledBundle("a", made.digest, made.name, 3, "r"), made, tmp_path / "a", options)
    words = list(order.words)
    assert words[:4] == ["serve", f"base={tmp_path}/a/base/model.gguf", "--adapter", f"tickets={tmp_path}/a/adapter"]
    assert words[words.index("--memory") + 1] == "400000000B" and order.nbytes == 400_000_000
    assert words[words.index("--upstream") + 1] == "none" and words[words.index("--fallback") + 1] == "tickets"
    assert words[-2:] == ["--api-keys", "keys"]


def test_a_base_that_comes_by_another_way_is_found_by_its_digest_only(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match=r"smollm2 with the digest cdcdcdcdcdcd, is not on this machine"):
        served.find_base(bundle(), tmp_path, Settings(tmp_path))
    model = tmp_path / "mine.gguf"
    model.write_bytes(b"GGUF of a kind")
    digest = base_digest(Located("mine", model))
    found = bundle(base=BundleBase(str(model), digest, 14))
    assert served.find_base(found, tmp_path, Settings(tmp_path)) == model
