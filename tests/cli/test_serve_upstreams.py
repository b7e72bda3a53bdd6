"""`brise serve --upstream` given once, and several times."""

from __future__ import annotations

import pytest

from brise.cli import serve_gateway
from brise.cli.main import main, parse
from brise.gateway.upstreams import Routes
from brise.serve.open_gateway import GatewayOptions, SmallOptions

ONE, TWO = "http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1"
BOTH = ("--upstream", f"one={ONE}", "--upstream", f"two={TWO}")


def options(*words: str) -> GatewayOptions:
    args = parse(["serve", *words])
    return serve_gateway.options_of(args, serve_gateway.check(args), SmallOptions())


def test_one_upstream_needs_no_name() -> None:
    made = options("--upstream", f"{ONE}?api-version=2024-10-21", "--upstream-dialect", "openai")
    assert list(made.upstreams) == [""] and made.routes == Routes()
    assert made.upstreams[""].settings.api_version == "2024-10-21"


def test_several_have_a_key_a_dialect_and_models_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TWO", "secret")
    made = options(*BOTH, "--upstream-key-env", "two=KEY_OF_TWO", "--upstream-dialect", "two=anthropic",
                   "--upstream-model", "one=gpt-*", "--upstream-model", "two=claude", "--default-upstream", "two",
                   "--upstream-path", "/v1/audio/*")
    assert [(name, each.settings.url, each.settings.key, each.dialect) for name, each in made.upstreams.items()] == [
        ("one", ONE, None, "openai"), ("two", TWO, "secret", "anthropic")]
    assert made.routes == Routes(("one", "two"), (("gpt-*", "one"), ("claude", "two")), "two")
    assert made.upstreams["one"].settings.paths == ("/v1/audio/*",)
    assert options(*BOTH).routes.default == "one"


@pytest.mark.parametrize(("words", "message"), [
    (("--upstream", ONE, "--upstream", TWO), "this one has no name"),
    (("--upstream", f"a={ONE}", "--upstream", TWO), "this one has no name"),
    (("--upstream", f"a={ONE}", "--upstream", f"a={TWO}"), "two are called 'a'"),
    ((*BOTH, "--upstream-key-env", "KEY"), "it is not said for which"),
    ((*BOTH, "--upstream-key-env", "three=KEY"), "there is no upstream 'three'; there is 'one', 'two'"),
    ((*BOTH, "--upstream-key-env", "one=NO_SUCH_KEY_HERE"), "'NO_SUCH_KEY_HERE' is not set"),
    ((*BOTH, "--upstream-dialect", "one=openai", "--upstream-dialect", "one=openai"), "given twice for 'one'"),
    ((*BOTH, "--upstream-dialect", "one=klingon"), "is 'klingon', allowed are openai and anthropic"),
    (("--upstream", ONE, "--upstream-dialect", "anthropic", "--upstream-dialect", "openai"), "it is given twice"),
    ((*BOTH, "--upstream-model", "gpt-4o"), "NAME=MODEL is needed"),
    ((*BOTH, "--upstream-model", "three=x"), "no upstream 'three'"),
    ((*BOTH, "--default-upstream", "x"), "no upstream 'x'"),
    (("--upstream", "a=nowhere"), "the upstream is 'nowhere'"), (("--upstream-path", "/v1/x"), "needs a gateway"),
    (("--default-upstream", "x"), "needs a gateway")])
def test_what_cannot_be_meant_is_an_error(words: tuple[str, ...], message: str,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    models = [] if "--upstream" in words else ["small"]
    assert main(["serve", *models, *words, "--port", "0"]) == 1
    assert message in capsys.readouterr().err


def test_two_without_names_are_told_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--upstream", ONE, "--upstream", TWO, "--port", "0"]) == 1
    assert "--upstream openai=https://" in capsys.readouterr().err
