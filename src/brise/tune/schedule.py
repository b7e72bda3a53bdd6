"""The learning rate of a step: a pure function, so that a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import math

from brise.tune.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """The rate of step 0, 1, ... of `num_steps`: it rises evenly to the recipe's, then falls as its schedule says.

    The last step has the floor; so has every one after it.
    """
    num_warmup = min(math.ceil(recipe.warmup * num_steps), num_steps)
    if step < num_warmup:
        return recipe.learning_rate * (step + 1) / num_warmup
    done = min((step - num_warmup) / max(num_steps - num_warmup - 1, 1), 1.0)
    floor = recipe.min_learning_rate
    match recipe.schedule:
        case "cosine":
            share = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
        case "linear":
            share = floor + (1.0 - floor) * (1.0 - done)
        case "constant":
            share = 1.0
    return recipe.learning_rate * share
