"""Runs a chat template, an untrusted program from a model file; template_process.py runs it in a process of its own.

Jinja's immutable sandbox restricts the template to its arguments. This module bounds most of what the sandbox does not:
processor time, the length of strings and of the output, and operations that would make huge values. Every loop, call,
filter, `~` and output of the template passes through a check. What gets past them meets the limits of the process.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, FunctionType
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from brise.text.sandbox import MAX_CHARS

_MAX_WORK = 1 << 30  # what one operation may make: characters in times characters or numbers in
_MAX_ITEMS = 1 << 20  # of one value, nested ones counted


class BrokenTemplateError(Exception):
    """The template does not compile."""


class BoundedTemplate:
    """A compiled template. `render` gives its text, or raises whatever the template raises."""

    def __init__(self, source: str, max_cpu_s: float) -> None:
        self._environment = _BoundedEnvironment(max_cpu_s)
        try:
            tree = self._environment.parse(source)
            _route_through_checks(tree)
            code = self._environment.compile(tree)
        except Exception as error:  # Python's compiler has limits of its own: 100 indentations, 20 nested blocks
            raise BrokenTemplateError(str(error) or type(error).__name__) from error
        self._template = Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, variables: Mapping[str, object]) -> str:
        self._environment.start()
        return "".join(self._template.generate(variables))


class _BoundError(TemplateError):
    """The template exceeded a bound."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what a trainer learns from; for rendering it is nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, max_cpu_s: float) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self._max_cpu_s, self._deadline_s = max_cpu_s, 0.0
        self._chars = 0
        self.filters = {name: self._checked(function) for name, function in self.filters.items()}
        self.filters.update({"format": self._checked(_format), "tojson": self._checked(_to_json), " loop": self._loop,
                             " output": self._output, " concat": self._concat})
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise, strftime_now=_now)

    def start(self) -> None:
        self._deadline_s, self._chars = time.thread_time() + self._max_cpu_s, 0

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        receiver = function.__self__ if isinstance(function, BuiltinMethodType) else None
        self._check(receiver if isinstance(receiver, str) else None, (*args, *kwargs.values()))
        return self._checked_result(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        match operator:
            case "**":
                too_much = not (abs(left) <= 1 << 20 and abs(right) <= 64)
            case "*":
                too_much = (1 + _weight(left, numbers=True)) * (1 + _weight(right, numbers=True)) > _MAX_WORK
            case "%":
                too_much = False
                _check_format(left)
            case _:
                too_much = _weight(left) + _weight(right) > _MAX_WORK
        if too_much:
            raise _BoundError(f"an operation {operator!r} on too large values")
        self._check(None, ())
        return self._checked_result(super().call_binop(context, operator, left, right))

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # A filter that wants context, environment or eval context gets it first and the value second.
        first = int(isinstance(function, FunctionType) and "jinja_pass_arg" in function.__dict__)

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._check(args[first], (*args[first + 1:], *kwargs.values()))
            return self._checked_result(function(*args, **kwargs))
        return checked

    def _check(self, value: Any, arguments: Sequence[Any]) -> None:
        if time.thread_time() > self._deadline_s:
            raise _BoundError(f"it ran for over {self._max_cpu_s:g} s")
        largest = max((_weight(argument, numbers=True) for argument in arguments), default=0)
        if (1 + _weight(value)) * (1 + largest) > _MAX_WORK:
            raise _BoundError("an operation on too large values")

    def _checked_result(self, result: Any) -> Any:
        if isinstance(result, str) and len(result) > MAX_CHARS:
            raise _BoundError(f"it made a text of over {MAX_CHARS} characters")
        return result

    # Jinja computes filters of constants while it compiles, except those that take the context.
    @pass_context
    def _loop(self, context: Context, items: Iterable[Any]) -> list[Any]:
        listed = list(items)  # all that the sandbox lets a template loop over is finite
        self._check(None, ())
        return listed

    @pass_context
    def _output(self, context: Context, value: Any) -> str:
        self._check(value, ())
        text = str(value)
        self._chars += len(text)
        if self._chars > MAX_CHARS:
            raise _BoundError(f"it wrote over {MAX_CHARS} characters")
        return text

    @pass_context
    def _concat(self, context: Context, values: list[Any]) -> str:
        self._check(values, ())
        return str(self._checked_result("".join(map(str, values))))


def _route_through_checks(tree: nodes.Template) -> None:
    """Sends loops, outputs and `~` through filters whose names no template can write."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _filter(_expression(loop.iter), " loop")
    for output in tree.find_all(nodes.Output):
        output.nodes = [_filter(_expression(node), " output") for node in output.nodes]
    for parent in [tree, *tree.find_all(nodes.Node)]:
        for name, value in parent.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(parent, name, _concat(value))
            elif isinstance(value, list):
                value[:] = [_concat(item) if isinstance(item, nodes.Concat) else item for item in value]


def _expression(node: nodes.Node) -> nodes.Expr:
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data)
    assert isinstance(node, nodes.Expr)
    return node


def _concat(node: nodes.Concat) -> nodes.Expr:
    return _filter(nodes.List(node.nodes), " concat")


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno or 1)
    return made


def _format(format: Any, *args: Any, **kwargs: Any) -> str:
    """Jinja's `format` filter, bounded as the operator % is: its template has at most 200 characters."""
    if args and kwargs:
        raise TemplateError("the filter 'format' takes values in order or by name, not both")
    if not isinstance(format, str):
        raise TemplateError("the filter 'format' is for text")
    _check_format(format)
    return str(format % (kwargs or args))


def _check_format(format: Any) -> None:
    """Bounds formats: `'%99999999d' % 1` makes a huge text, and so does one that names a long value often."""
    if isinstance(format, str) and (len(format) > 200 or re.search(r"\d{5}|\*", format)):
        raise _BoundError("a long format, or one with a width of five digits or '*'")


def _weight(value: Any, *, numbers: bool = False) -> int:
    """How large a result a value can lead to: its characters and items, nested ones too, and its numbers."""
    total, items, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        items += 1
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, int) and numbers:
            total += abs(item)
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        if items + len(waiting) > _MAX_ITEMS:
            raise _BoundError(f"a value of over {_MAX_ITEMS} items")
    return total + items


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on; the parameters are transformers'."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    # Private-use characters stay as they are: they may be disguised special tokens (chat.py).
    return "".join(char if char.isascii() or unicodedata.category(char) == "Co" else json.dumps(char)[1:-1]
                   for char in text)


def _raise(message: str) -> str:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
