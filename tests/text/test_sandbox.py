"""Chat templates are foreign programs: they may read what they get, for a short time, and make little of it."""

from __future__ import annotations

import pytest

from brise.errors import RequestError
from brise.text.sandbox import TemplateProgram

DOUBLE = "{%% set n = namespace(x='ab') %%}{%% for i in range(99) %%}{%% set n.x = %s %%}{%% endfor %%}"


@pytest.mark.parametrize(("source", "text"), [
    ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
    ("{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true) }}", '{"a": 1, "b": "\\u00e9"}'),
    ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),  # as transformers: trim_blocks, lstrip_blocks
    ("{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{% if loop.last %}!{% endif %} {% endfor %}",
     "1/3 2/3 3/3! "),
    ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
     "02"),
    ("{% generation %}a{% endgeneration %}b", "ab"),
    ("{{ 'a' ~ 1 ~ 'b' ~ none }}{{ 'x' * 3 + 'y' }}{{ '%s-%d' % ('q', 7) }}{{ '{}'.format(2) }}",
     "a1bNonexxxyq-72"),
    ("{% macro f(x) %}<{{ x | upper }}>{% endmacro %}{{ f('a') ~ f('b') }}", "<A><B>"),
    ("{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'b') | list | "
     "length }} {{ messages[0].role.split('')[0] if false else messages[-1]['role'] }}", "a,b 1 b"),
    ("{{ strftime_now('%Y') | length }}{{ missing is defined }}{{ missing }}", "4False"),
])
def test_templates_mean_what_they_mean_in_transformers(source: str, text: str) -> None:
    assert TemplateProgram(source).render({"messages": [{"role": "a"}, {"role": "b"}]}) == text


@pytest.mark.parametrize("source", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% for i in range(10000000) %}{% endfor %}",
])
def test_endless_work_is_stopped(source: str) -> None:
    with pytest.raises(RequestError, match="ran for over|recursion|Range too big"):
        TemplateProgram(source, max_cpu_s=0.05).render({})


@pytest.mark.parametrize("source", [
    "{{ 'x' * 9999999999 }}", "{{ [1] * 9999999999 }}", DOUBLE % "n.x ~ n.x", DOUBLE % "n.x + n.x",
    DOUBLE % "[n.x, n.x] | join", DOUBLE % "''.join([n.x, n.x])", DOUBLE % "[n.x, n.x]" + "{{ n.x }}",
    "{{ 'x'.center(9999999999) }}", "{{ 'x' | center(9999999999) }}", "{{ 'x' | indent(9999999999) }}",
    "{{ '%9999999999d' % 1 }}", "{{ '{:>9999999999}'.format(1) }}", "{{ '{:>{}}'.format(1, 9999999999) }}",
    "{{ ('a' * 999999) | replace('a', 'b' * 999999) }}", "{{ 9 ** 9 ** 9 }}",
    "{% set x %}{% for i in range(90000) %}{{ 'y' * 9999 }}{% endfor %}{% endset %}",
    "{% for i in range(90000) %}" + "y" * 999 + "{% endfor %}",
])
def test_huge_values_are_not_made(source: str) -> None:
    with pytest.raises(RequestError, match="refuses these messages"):
        TemplateProgram(source).render({})


@pytest.mark.parametrize("source", [
    "{{ messages.append(1) }}", "{{ messages.__class__.mro() }}", "{{ ''.__class__.__base__.__subclasses__() }}",
    "{% set x = cycler.__init__.__globals__ %}{{ x.os }}", "{% include 'a' %}", "{{ lipsum() }}",
    "{{ messages[0].update(a=1) }}", "{{ raise_exception('roles must alternate') }}"])
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        TemplateProgram(source).render({"messages": [{}]})
    assert caught.value.param == "messages"


def test_the_templates_own_words_reach_the_client() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        TemplateProgram("{{ raise_exception('roles must alternate') }}").render({})


def test_a_broken_template_is_an_error_of_the_request() -> None:
    with pytest.raises(RequestError, match="broken"):
        TemplateProgram("{% if %}")


def test_each_rendering_has_its_own_budget() -> None:
    program = TemplateProgram("{% for i in range(9000) %}" + "y" * 999 + "{% endfor %}")
    assert [len(program.render({})) for _ in range(3)] == [9000 * 999] * 3


@pytest.mark.parametrize("source", [
    "{% if 1 %}" * 110 + "x" + "{% endif %}" * 110,  # Python allows 100 indentations
    "".join(f"{{% for a{i} in [1] %}}" for i in range(25)) + "x" + "{% endfor %}" * 25,  # and 20 nested blocks
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "{{ " + "-" * 5000 + "1 }}", "{{ x | no_such_filter }}",
    "{{ x is no_such_test }}", "{% extends 'x' %}{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "{{ '\x00' }}{% set a.b.c = 1 %}", "{{ 1e999999 ** }}"])
def test_whatever_keeps_a_template_from_compiling_is_named(source: str) -> None:
    with pytest.raises(RequestError, match="the model's chat template"):
        TemplateProgram(source).render({})


@pytest.mark.parametrize(("source", "text"), [
    ("{{ '%s: %s' | format('user', 'hi') }}", "user: hi"), ("{{ '%(a)03d' | format(a=7) }}", "007"),
    ("{{ '%s' | format(messages) }}", "['hi']"), ("{{ 'no %%' | format }}", "no %")])
def test_the_format_filter(source: str, text: str) -> None:
    assert TemplateProgram(source).render({"messages": ["hi"]}) == text


@pytest.mark.parametrize("source", [
    "{{ '%99999d' | format(1) }}", "{{ '%*d' | format(99999999, 1) }}", "{{ ('%s' * 101) | format }}",
    "{{ ('%s' * 99) | format(*(['a' * 16000000] * 99)) }}", "{{ 5 | format(1) }}", "{{ '%s' | format(1, a=2) }}",
    "{{ '%d' | format('x') }}"])
def test_the_format_filter_is_bounded(source: str) -> None:
    with pytest.raises(RequestError):
        TemplateProgram(source).render({})
