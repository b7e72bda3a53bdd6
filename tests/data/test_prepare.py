"""From files to rows: everything that was left out is told, and what is the same has the same digest."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from brise.data.prepare import DataOptions, Dataset, prepare
from brise.data.read_rows import BadRowsError
from brise.data.report import Histogram
from brise.data.rights import Right, Rights, RightsError
from brise.errors import EvidenceError
from brise.text.load import Tokens
from tests.data.rows import chat, learned, tokens, write
from tests.data.test_near import sentences
from tests.text.vocabulary import tokenizer

TEXTS = sentences(60, 6)
ROWS = [chat(text, f"answer {index}", "be brief") for index, text in enumerate(TEXTS)]


def prepared(folder: Path, rows: list[dict[str, object]], own: Tokens | None = None, **options: object) -> Dataset:
    path = write(folder / "data.jsonl", rows)
    return prepare([path], own or tokens(), DataOptions(**options), today=lambda: date(2026, 6,
                                                                                       1))  # type: ignore[arg-type]


def test_rows_are_split_and_every_token_is_counted(tmp_path: Path) -> None:
    data = prepared(tmp_path, ROWS, held_out_share=0.3)
    report = data.report
    assert len(data.train) + len(data.held_out) == 60 and 5 < len(data.held_out) < 35
    assert [row.place for row in data.train] == [each.place for each in data.train_examples]
    assert report.train.tokens == sum(len(row.tokens) for row in data.train)
    assert report.held_out.targets == sum(row.num_targets for row in data.held_out)
    assert sum(report.lengths.counts) == 60 and report.conversations == 60
    text = "\n".join(report.lines())
    assert f"train: {len(data.train)} examples" in text and "duplicates: 0 rows" in text and "#" in text
    assert json.loads(json.dumps(report.to_json()))["train"]["rows"] == len(data.train)


def test_the_digest_tells_whether_the_same_is_trained(tmp_path: Path) -> None:
    first, again = (prepared(tmp_path, ROWS).digest for _ in range(2))
    others = {prepared(tmp_path, ROWS, seed=1).digest, prepared(tmp_path, ROWS[:-1]).digest,
              prepared(tmp_path, ROWS, targets="all").digest}
    assert first == again and first not in others and len(others) == 3


def test_bad_rows_stop_the_run_or_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [*ROWS[:5], {"messages": []}, *ROWS[5:10], chat("hi", "ho", tools=5)]
    with pytest.raises(BadRowsError, match="2 of 12 rows cannot be trained on") as caught:
        prepared(tmp_path, rows)
    assert [bad.place.rpartition(":")[2] for bad in caught.value.bad] == ["6", "12"]
    data = prepared(tmp_path, rows, skip_bad=True)
    assert len(data.train) + len(data.held_out) == 10 and len(data.report.bad) == 2
    assert "2 rows cannot be trained on and are left out" in "\n".join(data.report.lines())


def test_what_the_chat_format_refuses_is_a_bad_row_in_its_place(tmp_path: Path) -> None:
    own = tokens("{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
                 "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(BadRowsError, match=r"^2 of 3 rows.*\n.*data.jsonl:2: .*not this.*\n.*data.jsonl:3:"):
        prepared(tmp_path, [chat("a", "b"), chat("no", "b"), {}], own)


def test_rows_that_are_too_long_are_left_out_or_refused_and_never_cut(tmp_path: Path) -> None:
    rows = [*ROWS, chat(" ".join(TEXTS), "ho", "be brief")]
    data = prepared(tmp_path, rows, max_tokens=200)
    assert max(len(row.tokens) for row in (*data.train, *data.held_out)) <= 200
    assert [row.place.rpartition(":")[2] for row in data.report.too_long] == ["61"]
    assert "1 rows are too long and are left out" in "\n".join(data.report.lines())
    assert data.digest == prepared(tmp_path, ROWS).digest
    with pytest.raises(BadRowsError, match="allowed are 200"):
        prepared(tmp_path, rows, max_tokens=200, too_long="refuse")
    with pytest.raises(EvidenceError, match=r"no row is left to train on: 61 are too long, .*:1 has \d+ tokens"):
        prepared(tmp_path, rows, max_tokens=2)


def test_a_held_out_file_is_refused_if_it_was_trained_on(tmp_path: Path) -> None:
    other = write(tmp_path / "held.jsonl", [*ROWS[:2], chat("something else", "ho")])
    with pytest.raises(EvidenceError, match="2 rows held out have a prompt that is trained on"):
        prepared(tmp_path, ROWS, held_out=(other,))
    data = prepared(tmp_path, ROWS, held_out=(other,), allow_leakage=True)
    assert (len(data.train), len(data.held_out), data.report.leakage.same_prompt) == (60, 3, 2)
    assert len(prepared(tmp_path, ROWS[2:], held_out=(other,)).held_out) == 3
    with pytest.raises(EvidenceError, match="both trained on and held out"):
        prepared(tmp_path, ROWS, held_out=(tmp_path / "data.jsonl",))


def test_rows_of_a_provider_need_its_rights(tmp_path: Path) -> None:
    rows = [*ROWS[:6], *(chat(text, "x", provider="Acme") for text in TEXTS[6:9]), chat("hi", "ho", model="gpt-4o")]
    entries = tuple(Right(name, "contract", date(2026, 1, 1), ("training",)) for name in ("acme", "openai"))
    with pytest.raises(RightsError, match="3 rows hold answers of 'acme'"):
        prepared(tmp_path, rows)
    with pytest.raises(RightsError, match="1 rows hold answers of 'openai'"):
        prepared(tmp_path, rows, rights=Rights(entries[:1], Path("rights.toml")))
    data = prepared(tmp_path, rows, rights=Rights(entries))
    assert [(used.right.provider, used.rows) for used in data.rights] == [("acme", 3), ("openai", 1)]
    assert "3 rows of acme: allowed by contract (2026-01-01)" in data.report.lines()


def test_absorbing_the_system_prompt_saves_its_tokens(tmp_path: Path) -> None:
    system = "the user is in the inn " * 20
    rows = [chat(text, "ho", system) for text in TEXTS]
    own = tokens()
    without, short = (prepared(tmp_path, rows, own, absorb_system=absorb) for absorb in (True, "be brief"))
    length = len(own.tokenizer.encode(f"system\n{system}")) + 3  # two control tokens and the line break
    assert without.report.saved is not None and without.report.saved.tokens == length
    assert short.report.saved is not None and 0 < short.report.saved.tokens < length
    shown = own.tokenizer.decode(short.train[0].tokens.tolist())
    assert shown.startswith("system\nbe brief\nuser\n") and learned(short.train[0], own.tokenizer) == ["ho<|im_end|>"]
    assert any(line.startswith("without the system prompt a request has") for line in without.report.lines())
    with pytest.raises(EvidenceError, match="no system prompt to absorb"):
        prepared(tmp_path, [chat("hi", "ho")], absorb_system=True)


def test_a_base_model_is_trained_on_text(tmp_path: Path) -> None:
    base = Tokens(tokenizer(control=("<|endoftext|>",), eos_token_id=0), None)
    data = prepared(tmp_path, [{"prompt": text, "completion": "ho"} for text in TEXTS], base)
    assert learned(data.train[0], base.tokenizer) == ["ho<|endoftext|>"]
    with pytest.raises(BadRowsError, match="without a chat format"):
        prepared(tmp_path, ROWS, base)


@pytest.mark.parametrize("options", [{"held_out_share": 1.0}, {"held_out_share": -0.1}, {"max_tokens": 1},
                                     {"as_text": True, "absorb_system": True}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(EvidenceError):
        DataOptions(**options)  # type: ignore[arg-type]


def test_a_histogram_has_a_bar_for_each_bin() -> None:
    histogram = Histogram.of([9, 12, 13, 100])
    assert (histogram.edges, histogram.counts) == ((8, 12, 16, 24, 32, 48, 64, 96, 128), (2, 1, 0, 0, 0, 0, 0, 1))
    lines = histogram.lines()
    assert lines[0].split() == ["9", "to", "12", "2", "#" * 40] and lines[2].split() == ["17", "to", "24", "0"]


def test_a_conversation_of_very_many_rows_is_pointed_out(tmp_path: Path) -> None:
    greeted = [{"messages": [*chat("hi", "hello", "be brief")["messages"],
                             *row["messages"][1:]]}  # type: ignore[misc, index]
               for row in ROWS]
    lines = prepared(tmp_path, greeted, held_out_share=0.0).report.lines()
    assert "1 conversations, the largest with 60 rows" in lines
    lines = prepared(tmp_path, [*greeted, *ROWS], held_out_share=0.0).report.lines()
    assert "61 conversations, the largest with 60 rows; if it is many, name them (--conversation)" in lines
