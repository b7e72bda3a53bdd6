"""What stands in for models, data and traffic in a page's folder: tiny, but of the real kind.

The kinds of `<!-- given: KIND NAME ... -->`:

    gguf NAME       a random model of one file          folder NAME   one in Hugging Face's layout
    stored NAME     smollm2 in F16, in the store        adapter NAME  a random adapter for smollm2
    examples NAME   rows to train on, or to measure     numbers NAME  rows whose answers are numbers
    labels NAME     rows with labels, to calibrate with     sorter NAME   what `brise triage fit` makes
    pairs NAME      a log with two models' answers      traces NAME   a log of another system
    text NAME       some text                           keys NAME     API keys
    outcomes NAME   labels of the traffic of `triage`
    rights NAME     a right to train on every answer    traffic TASK  captured requests, and answers in the shadow
    certified TASK  the same, with a certificate        certificate NAME  that of the traffic of `tickets`
    merged NAME     smollm2 with the adapter in the folder tickets-smollm2
    virtual NAME    a virtual key in the store
    hearing NAME    a tiny Voxtral in a folder              sound NAME    a WAV file
    fleet NAME      keys and a repository of a fleet, the keys and root.json here, too; an adapter that has a lineage
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from brise.checkpoint.adapters.lineage import base_digest
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.files.digests import Located
from brise.fleet import keys
from brise.fleet.keys import CeremonyOptions, CreateKeys
from brise.fleet.signing import new_key
from brise.prove import triage
from brise.prove.triage import TriageOptions
from brise.traffic.records import Exchange, Label, RecordedAnswer
from brise.traffic.stores import open_store
from tests.checkpoint import make_audio_model
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.prove import logs
from tests.report.traffic import body

ID = "019ac2f4d1a0c0ffee00000000000001"  # of an exchange that examples name
WORDS = ("rain", "tea", "the sea", "a train", "war", "stars", "a line", "the other one", "an answer", "this")
START_S = time.time() - 3 * 86_400  # examples ask for the last days


@dataclass(frozen=True)
class Place:
    """A page's folder, its BRISE_HOME, the file of the model `smollm2`, and where stand-ins are kept that take time."""

    folder: Path
    home: Path
    model: Path
    made: Path


def put(place: Place, kind: str, names: Sequence[str]) -> None:
    """Stand-ins of a kind into the folder, or into the home."""
    for name in names:
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        KINDS[kind](place, path)


def _gguf(place: Place, path: Path) -> None:
    write_tiny(path, "llama")


def _folder(place: Place, path: Path) -> None:
    assert main(["export", str(place.model), str(path), "--format", "hf", "--dtype", "bf16"]) == 0


def _stored(place: Place, path: Path) -> None:
    plain = place.made / "plain.gguf"
    if not plain.exists():
        plain.parent.mkdir(exist_ok=True)
        assert main(["export", str(place.model), str(plain), "--format", "gguf", "--dtype", "f16"]) == 0
    assert main(["pull", str(plain), "--name", path.name]) == 0


def _adapter(place: Place, path: Path) -> None:
    config = open_checkpoint(place.model).config
    write_adapter(path, AdapterFile(random_low_ranks(config, 7, rank=4), 4, 8.0), None, config)


def _examples(place: Place, path: Path) -> None:
    logs.write(path, [{"system": "Answer yes or no.", "prompt": f"{path.stem} {number} on {WORDS[number % 10]}",
                  "completion": ("yes", "no")[number % 2]} for number in range(60)])


def _labels(place: Place, path: Path) -> None:
    logs.write(path, [{"prompt": f"{path.stem} {number} {WORDS[number % 10]}",
                       "completion": ("attack", "norm")[number % 2]} for number in range(120)])


def _sorter(place: Place, path: Path) -> None:
    rows = [path.with_name(f"{path.name}-{part}.jsonl") for part in ("learned", "calibrated")]
    for file in rows:
        _labels(place, file)
    triage.fit(TriageOptions((rows[0],), (rows[1],), path))


def _numbers(place: Place, path: Path) -> None:
    logs.write(path, [{"prompt": f"{number} + 1", "completion": str(number + 1)} for number in range(40)])


def _pairs(place: Place, path: Path) -> None:
    logs.write(path, logs.rows(40))


def _traces(place: Place, path: Path) -> None:
    logs.write(path, [{"messages": [{"role": "user", "content": f"hi {number}"},
                                    {"role": "assistant", "content": "hello"}]} for number in range(3)])


def _outcomes(place: Place, path: Path) -> None:
    path.write_text("".join(["id,score\n", *(f"triage{number:05d},{number % 2}\n" for number in range(1, 20))]))


def _text(place: Place, path: Path) -> None:
    draws = random.Random(1)
    path.write_text("".join(f"{' and '.join(draws.choices(WORDS, k=8))}.\n" for _ in range(100)))


def _keys(place: Place, path: Path) -> None:
    path.write_text("a-key-of-a-client\n")
    path.chmod(0o600)


def _virtual(place: Place, path: Path) -> None:
    assert main(["keys", "add", path.name, "--usd-per-day", "5"]) == 0


def _rights(place: Place, path: Path) -> None:
    path.write_text('[[allow]]\nprovider = "big"\nbasis = "a contract"\ndate = 2026-01-01\nscope = "training"\n')


def _traffic(place: Place, path: Path) -> None:
    """Conversations of the task; the adapter of that name answered in the shadow, in 4 of 100 otherwise: better."""
    made = place.made / path.name
    if not made.exists():
        with closing(open_store(None, made)) as store:
            store.add(*_conversations(path.name))
    shutil.copytree(made / "gateway", place.home / "gateway", dirs_exist_ok=True)


def _conversations(task: str) -> tuple[list[Exchange], list[RecordedAnswer], list[Label]]:
    exchanges, answers, labels = list[Exchange](), list[RecordedAnswer](), list[Label]()
    draws = random.Random(2)
    for number, row in enumerate(logs.rows(400, better=0.04, worse=0.0)):
        id, at_s = ID if number == 0 else f"{task}{number:05d}", START_S + 60 * number
        large, small = row["large"]["content"], row["small"]["content"]
        exchanges.append(Exchange(
            id, at_s, task, "chat", "/v1/chat/completions", "big", "hosted", 200, f"{task}-{number}", subject="anna",
            served_by="big", cost_usd=0.01, total_s=row["large"]["seconds"], response=body(large, "big"),
            request={"model": "big", "messages": [{"role": "user", "content": f"a refund for {row['prompt']}"}]}))
        surprise = draws.gauss(0.0, 1.0) - 3.0 * (small != large)
        answers.append(RecordedAnswer(
            f"s-{id}", id, at_s, "shadow", task, total_s=row["small"]["seconds"], response=body(small, task),
            signals={"veto": 0.0, "logprob": surprise, "length": draws.gauss(0.0, 1.0)}))
        labels += [Label(f"l-{id}", id, at_s, "outcome", "tests", float(large == row["reference"])),
                   Label(f"m-{id}", id, at_s, "outcome", "tests", answer=f"s-{id}",
                         answer_score=float(small == row["reference"]))]
    return exchanges, answers, labels


def _certified(place: Place, path: Path) -> None:
    _traffic(place, path)
    assert main(["prove", "--task", path.name]) == 0


def _certificate(place: Place, path: Path) -> None:
    assert main(["prove", "--task", "tickets", "--certificate", str(path)]) == 0


def _merged(place: Place, path: Path) -> None:
    assert main(["export", "smollm2", str(path), "--format", "gguf", "--adapter", "tickets-smollm2/adapter",
                 "--merge"]) == 0


def _hearing(place: Place, path: Path) -> None:
    make_audio_model.write_hearing(path)


def _sound(place: Place, path: Path) -> None:
    path.write_bytes(make_audio_model.speech(0.5))


def _fleet(place: Place, path: Path) -> None:
    root = keys.create(CeremonyOptions(), CreateKeys())
    for file in root.parent.iterdir():
        shutil.copy2(file, place.folder)
    new_key(place.folder / "hub-2.key")
    config = open_checkpoint(place.model).config
    lineage = replace(LINEAGE, base_digest=base_digest(Located("smollm2", place.model)))
    write_adapter(path, AdapterFile(random_low_ranks(config, 7, rank=4), 4, 8.0), lineage, config)


KINDS: Mapping[str, Callable[[Place, Path], None]] = MappingProxyType({
    "gguf": _gguf, "folder": _folder, "stored": _stored, "adapter": _adapter, "examples": _examples,
    "numbers": _numbers, "labels": _labels, "sorter": _sorter, "pairs": _pairs, "traces": _traces,
    "outcomes": _outcomes, "text": _text, "keys": _keys, "rights": _rights,
    "traffic": _traffic, "certified": _certified, "certificate": _certificate,
    "merged": _merged, "virtual": _virtual, "hearing": _hearing, "sound": _sound, "fleet": _fleet})


def prepare(folder: Path, model: Path | None) -> Place:
    """A place with nothing but `smollm2` in its store: `model`, or a tiny one in its stead."""
    place = Place(folder / "work", folder / "home", model or write_tiny(folder / "tiny.gguf", "llama"), folder / "made")
    place.folder.mkdir()
    assert main(["pull", str(place.model), "--name", "smollm2"]) == 0
    return place


def copy(place: Place, folder: Path) -> Place:
    """The same somewhere else."""
    for path in (place.folder, place.home):
        shutil.copytree(path, folder / path.name, symlinks=True)
    return Place(folder / place.folder.name, folder / place.home.name, place.model, place.made)
