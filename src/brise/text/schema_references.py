"""References in a JSON schema: how deep following them leads.

The grammar engine follows them by recursion, with 8 KB of the stack for each schema within another; a chain of a
thousand definitions would end the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brise.errors import RequestError
from brise.text.schema_forms import Schema, resolve

MAX_LEVELS = 1000  # containers of JSON within one another; two of them are a schema, so this is half of a stack of 8 MB


def check_levels(root: Schema, param: str) -> None:
    """RequestError if references lead deeper than the engine may go, in whatever order it follows them."""
    if _Walk(root, param).levels(root) > MAX_LEVELS:
        raise _too_deep(param)


@dataclass
class _Walk:
    """Tarjan's strongly connected components: parts that refer to one another may all be within one another."""

    root: Schema
    param: str
    found: dict[int, int] = field(default_factory=dict)  # part to the order in which it was reached
    open: list[tuple[int, int, list[object]]] = field(default_factory=list)  # parts, their own levels and references
    done: dict[int, int] = field(default_factory=dict)  # part to the levels from there

    def levels(self, part: object) -> int:
        """An upper bound for the levels from this part on."""
        self._visit(part, 0)
        return self.done[id(part)]

    def _visit(self, part: object, num_followed: int) -> int:
        """The first part that was reached and can be reached from here."""
        if num_followed > MAX_LEVELS // 2:
            raise _too_deep(self.param)
        own, targets = _inside(part, self.root)
        order = lowest = self.found[id(part)] = len(self.found)
        self.open.append((id(part), own, targets))
        for target in targets:
            if id(target) not in self.found:
                lowest = min(lowest, self._visit(target, num_followed + 1))
            elif id(target) not in self.done:
                lowest = min(lowest, self.found[id(target)])
        if lowest == order:
            self._close(id(part))
        return lowest

    def _close(self, first: int) -> None:
        at = next(at for at in range(len(self.open) - 1, -1, -1) if self.open[at][0] == first)
        group = self.open[at:]
        del self.open[at:]
        below = max((self.done[id(target)] for _, _, targets in group for target in targets if id(target) in self.done),
                    default=0)
        self.done |= dict.fromkeys((part for part, _, _ in group), sum(own for _, own, _ in group) + below)


def _inside(part: object, root: Schema) -> tuple[int, list[object]]:
    """How deep a part is without its references, and what they name."""
    deepest, targets, waiting = 0, dict[int, object](), [(part, 1)]
    while waiting:
        value, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(value, Mapping) and isinstance(target := resolve(value.get("$ref"), root), Mapping):
            targets[id(target)] = target
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        waiting += [(each, depth + 1) for each in inner if isinstance(each, Mapping | list)]
    return deepest, list(targets.values())


def _too_deep(param: str) -> RequestError:
    return RequestError(f"{param} is too deep: its references lead over {MAX_LEVELS} levels down", param=param,
                        code="invalid_grammar")
