"""How many examples a property test takes: a quarter by default, all of them with --slow or in the profile `explore`.

They are the same in every run, so that nobody's change fails on what another one brought; `--hypothesis-profile
explore` looks for new ones. No deadlines: machines are shared.
"""

from __future__ import annotations

from hypothesis import settings

WHOLE = 100  # examples of a property without a number of its own


def register() -> None:
    """Makes the profiles known and loads the default one."""
    settings.register_profile("brise", derandomize=True, deadline=None, max_examples=WHOLE // 4)
    settings.register_profile("slow", derandomize=True, deadline=None, max_examples=WHOLE)
    settings.register_profile("explore", deadline=None, print_blob=True, max_examples=WHOLE)
    settings.load_profile("brise")


def examples(whole: int) -> int:
    """The share of `whole` that the loaded profile takes."""
    return whole * settings.default.max_examples // WHOLE
