"""What a type checker and an import see: every public name, with its type, and nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import brise
from tests.test_architecture import ROOT, runs_from_source

PROGRAM = '''
import asyncio
import pydantic
import brise

class Ticket(pydantic.BaseModel):
    team: str

def main(model: brise.Model) -> None:
    answer = model.chat("hi", max_tokens=3, temperature=0, stop="x")
    text: str = answer.text
    finish: str = answer.finish
    ticket: Ticket = model.chat("hi", schema=Ticket).value
    assert isinstance(model.chat("hi", schema={"type": "object"}).value, dict)
    for piece in model.stream([{"role": "user", "content": "hi"}], tools=[brise.Tool("f")]):
        if piece.call is not None:
            print(piece.call.name, piece.call.arguments["x"])
    for result in model.batch(["a", "b"], schema=Ticket):
        print(result.answer.value.team, text, finish, ticket)
    total: float = model.score("hi", given="x").total
    rows = model.embed(["a"])
    print(total, rows.shape)

async def amain(model: brise.Model) -> None:
    ticket: Ticket = (await model.achat("hi", schema=Ticket)).value
    async for piece in model.astream("hi"):
        print(str(piece), ticket)

with brise.load("smollm2", memory="4GB") as model:
    main(model)
    asyncio.run(amain(model))
'''
WRONG = '''
import brise
model = brise.load("smollm2", devise="cpu")
model.chat("hi", temprature=0)
model.chat("hi", max_tokens="3")
model.chat(3)
brise.laod("smollm2")
ticket: int = model.chat("hi").text
'''


def checked(path: Path, program: str, *others: Path) -> str:
    path.write_text(program, encoding="utf-8")
    environment = {**os.environ, **({"MYPYPATH": str(ROOT / "src")} if runs_from_source() else {})}
    words = ["-m", "mypy", "--strict", "--config-file=", "--no-color-output", "--cache-dir", str(path.parent / "cache")]
    done = subprocess.run([sys.executable, *words, str(path), *map(str, others)], capture_output=True, text=True,
                          check=False, env=environment)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_program_that_is_right_passes_mypy_strict_and_one_that_is_wrong_does_not(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(PROGRAM, encoding="utf-8")
    found = checked(tmp_path / "wrong.py", WRONG, tmp_path / "right.py", *sorted((ROOT / "examples").glob("*.py")))
    errors = [line.split(":") for line in found.splitlines() if "error:" in line]
    assert {(Path(path).name, int(number)) for path, number, *_ in errors} == {
        ("wrong.py", number) for number in range(3, 9)}, found


def test_every_public_name_is_there_and_what_is_not_there_is_an_attribute_error() -> None:
    for name in dir(brise):
        assert getattr(brise, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        brise.laod  # type: ignore[attr-defined]  # noqa: B018


def test_importing_brise_loads_none_of_its_parts() -> None:
    code = ("import brise, sys\n"
            "print(sorted(name for name in sys.modules if name.startswith('brise.') or name == 'numpy'))\n"
            "brise.load\n"
            "heavy = ('torch', 'starlette', 'httpx', 'uvicorn', 'pydantic', 'mistral_common', 'rich', 'llguidance')\n"
            "print([name for name in heavy if name in sys.modules])\n")
    source = {"PYTHONPATH": str(ROOT / "src")} if runs_from_source() else None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=source)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stdout + done.stderr
