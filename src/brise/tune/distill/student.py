"""The student's own answers: the model in training, served by the engine with its current weights.

Its base is placed once more, in the engine's form, and released after the answers; an adapter goes through a file, as
it does when it is served. Needs the extra `tune`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from brise.backends import open_planner
from brise.backends.torch.weights import tensor_of
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import Checkpoint
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel
from brise.engine.request import Request, Sampling
from brise.errors import EvidenceError
from brise.files.atomic import output_errors
from brise.models.weights import Array, Dense, Weight, place
from brise.text.load import Tokens
from brise.tune.adapters import Trained
from brise.tune.distill.on_policy import Prompt
from brise.tune.recipe import Recipe

PARALLEL = 16  # answers at one time: more are hardly faster on a CPU, and each keeps its keys and values in memory
_NAME = "student"

Progress = Callable[[int], None]  # answers that have ended


@dataclass(frozen=True)
class Student:
    """The model that answers. `scratch` is a folder that it may make and remove."""

    checkpoint: Checkpoint
    tokens: Tokens
    recipe: Recipe
    scratch: Path
    threads: int
    temperature: float

    def answers(self, trained: Trained, prompts: Sequence[Prompt], seed: int, is_stopped: Callable[[], bool],
                progress: Progress) -> list[Array] | None:
        """An answer to each prompt, with its end token unless it was cut; None if stopped."""
        engine = self._engine(trained, max(len(prompt.tokens) + prompt.room for prompt in prompts), len(prompts))
        adapter = None if engine.adapters is None else _NAME
        tokens_by_id: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            sampling = Sampling(temperature=self.temperature, seed=_seed(seed, index))
            request = Request(tuple(map(int, prompt.tokens)), max_tokens=prompt.room, sampling=sampling,
                              adapter=adapter)
            tokens_by_id[engine.submit(request)] = []
        while engine.has_work:
            if is_stopped():
                return None
            for delta in engine.step():
                if delta.error is not None:
                    raise EvidenceError(f"the student could not answer: {delta.error}")
                tokens_by_id[delta.request_id].extend(delta.tokens)
                if delta.finish is not None:
                    progress(1)
        return [np.array(answer, np.int32) for answer in tokens_by_id.values()]

    def _engine(self, trained: Trained, longest: int, num_prompts: int) -> Engine:
        backend = open_planner(self.threads)
        is_whole = self.recipe.method == "full"
        stored = place(trained.weights, _as_numbers) if is_whole else self.checkpoint.weights()
        model = LoadedModel(self.checkpoint.config, backend, place(stored, backend.place), self.tokens.tokenizer,
                            self.tokens.chat, None, _NAME, self.checkpoint.path)
        self.checkpoint.forget()
        engine = Engine(model, settings_for(longest, num_prompts, 0 if is_whole else self.recipe.rank))
        if engine.adapters is not None:
            self._put_adapter(engine, trained)
        return engine

    def _put_adapter(self, engine: Engine, trained: Trained) -> None:
        assert engine.adapters is not None
        recipe = self.recipe
        with output_errors(self.scratch):
            shutil.rmtree(self.scratch, ignore_errors=True)  # of a run that was killed
            write_adapter(self.scratch, AdapterFile(trained.low_ranks(), recipe.rank, recipe.alpha), None,
                          self.checkpoint.config, is_wrapped=self.checkpoint.vision is not None)
            engine.adapters.add(_NAME, self.scratch)
            shutil.rmtree(self.scratch)


def settings_for(longest: int, num_prompts: int, rank: int) -> EngineSettings:
    """Settings of an engine that answers so many prompts, in rows of up to `longest` tokens; rank 0: no adapter."""
    sizes = EngineSettings()
    parallel = min(PARALLEL, num_prompts)
    return EngineSettings(max_context=longest, num_pages=parallel * -(-longest // sizes.page_size),
                          max_sequences=parallel, max_waiting=num_prompts, max_adapters=1 if rank else 0,
                          max_rank=max(rank, 1))


def _as_numbers(name: str, weight: Weight) -> Weight:
    return Dense("F32", weight.shape, tensor_of(weight).detach().float().cpu().numpy())


def _seed(*numbers: int) -> int:
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")
