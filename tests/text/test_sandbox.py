"""Chat templates are foreign programs: they may read what they get, for a short time, and make little of it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brise.errors import RequestError
from brise.text.sandbox import TemplateProgram
from tests.waiting import LIMIT_S

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


DEEP = ("{% set ns = namespace(x=1) %}{% for j in range(3) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}"
        "{% endfor %}{% endfor %}{% set d = {ns.x: 1} %}done")
MANY = "{% if messages %}{% set u = 'é' * 16000000 %}"
STEPS = "{% if messages %}{% set b = 'a' * 16000000 %}{% for i in range(99999) %}"


@pytest.mark.parametrize(("source", "message"), [
    ("{% if messages %}" + DEEP + "{% endif %}", "its process died of SIG"),
    (STEPS + "{% if b[1:] in b %}{% endif %}{% endfor %}{% endif %}", "ran for over 0.2 s"),
    (STEPS + "{% if b[1:] < b %}{% endif %}{% if not b[2:] %}{% endif %}{% endfor %}{% endif %}", "ran for over 0.2 s"),
    (MANY + "".join(f"{{% set v{i} = u[{i}:] %}}" for i in range(200)) + "{% endif %}", "over 512 MiB of memory"),
    (MANY + "".join(f"{{% set v{i} = u | list %}}" for i in range(20)) + "{% endif %}",
     "over 512 MiB of memory|too large|items"),
    ("{% if messages %}{{ (7 ** 64) ** 60 | string | length }}{% for i in range(9) %}{% set a = 3 ** 64 ** 3 %}"
     "{% endfor %}{% endif %}", "too large")])
def test_what_passes_the_checks_ends_with_its_process_and_the_next_request_is_answered(source: str,
                                                                                      message: str) -> None:
    program = TemplateProgram(source + "hi", max_cpu_s=0.2 if "0.2" in message else 5)
    with pytest.raises(RequestError, match=message) as caught:
        program.render({"messages": [{"role": "user"}]})
    assert caught.value.code == "chat_template_error"
    assert program.render({"messages": []}) == "hi"


def test_a_template_that_dies_while_it_is_compiled() -> None:
    with pytest.raises(RequestError, match="chat template"):
        TemplateProgram("{{ " + "[" * 20000 + "]" * 20000 + " }}").render({})


def test_an_error_of_the_template_is_short() -> None:
    with pytest.raises(RequestError) as caught:
        TemplateProgram("{{ raise_exception('x' * 9999999) }}").render({})
    assert len(str(caught.value)) < 3000


def test_values_reach_the_template_as_they_are() -> None:
    values = {"a": [1, 2.5, True, None, "\ud800", "\U0010ffff"], "b": {"c": float("inf")}}
    assert TemplateProgram("{{ a }}{{ b }}{{ a[4] }}").render(values) == str(values["a"]) + str(values["b"]) + "\ud800"


def test_values_nested_too_deeply_are_refused() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RequestError, match="refuses these messages"):
        TemplateProgram("{{ a }}").render({"a": nested})


PARENT = """
import os, sys
from brise.text.sandbox import TemplateProgram
program = TemplateProgram("{% for i in range(99999) if busy %}{% for j in range(99999) %}{% endfor %}{% endfor %}hi")
print(program.render({}), program._process._child.pid, flush=True)
if sys.argv[1] == "busy":
    program.render({"busy": 1})
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_process_is_left_when_the_parent_is_killed(state: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, state], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        greeting, child = parent.stdout.readline().split()
        assert greeting == b"hi"
        watch = os.pidfd_open(int(child))
        parent.kill()
    assert select.select([watch], [], [], 20)[0], "the template's process has ended"
    os.close(watch)


def test_a_stop_signal_ends_a_program_whose_template_hangs() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, "busy"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        watch = os.pidfd_open(int(parent.stdout.readline().split()[1]))
        parent.send_signal(signal.SIGINT)
        assert parent.wait(LIMIT_S) != 0
    assert select.select([watch], [], [], 20)[0]
    os.close(watch)


def test_the_process_can_open_nothing_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "sk-12345678")
    program = TemplateProgram("hi")
    assert program._process is not None
    place = Path(f"/proc/{program._process._child.pid}")
    assert b"sk-12345678" not in (place / "environ").read_bytes()
    limits = {line[:25].strip(): line[26:].split()[:2] for line in (place / "limits").read_text().splitlines()}
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max core file size"] == ["0", "0"]
    assert sorted(path.name for path in (place / "fd").iterdir()) == ["0", "1", "2"]


def test_a_forked_program_gets_a_process_of_its_own() -> None:
    script = ("import os\nfrom brise.text.sandbox import TemplateProgram\nprogram = TemplateProgram('{{ a }}')\n"
              "child = os.fork()\nassert program.render({'a': 'x' * 9}) == 'x' * 9\n"
              "if child: assert os.waitpid(child, 0)[1] == 0\nassert program.render({'a': 1}) == '1'")
    assert subprocess.run([sys.executable, "-W", "error", "-c", script], check=False).returncode == 0
