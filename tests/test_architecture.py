"""The house rules that a machine can check: import arrows, sizes, no hidden state, no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "brise"
MODULES = tuple(sorted(SOURCE.rglob("*.py")))
PYTHON = (*MODULES, *sorted(path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")))
NATIVE = tuple(sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in (".h", ".cpp")))
MAX_LINES, MAX_NATIVE_LINES, MAX_FUNCTION_LINES = 400, 500, 60
COMMAND_SEAM = ("add_parser", "run")  # the same two functions in every command's file

# From the bottom to the top: a package imports itself and what stands before it.
ORDER = ("errors", "settings", "_native", "files", "models", "quant", "backends", "text", "checkpoint", "hub", "engine",
         "stats", "tune", "memory", "evals", "dialects", "traffic", "gateway", "switch", "prove", "report", "serve",
         "api", "demo", "cli", "")  # "": brise/__init__.py, the public names


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    package = package_of(path)
    allowed = (*ORDER[:ORDER.index(package) + 1], "__version__")
    wrong = [target for target in brise_imports(path) if target.split(".", maxsplit=1)[0] not in allowed]
    assert not wrong, f"{package} may import {allowed}, not {wrong}"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_python_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    long = [f"{node.name}: {length(node)}" for node in ast.walk(parse(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > MAX_FUNCTION_LINES]
    assert not long, f"functions over {MAX_FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize("path", NATIVE, ids=name_of)
def test_native_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_NATIVE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_first_line_says_what_the_file_is(path: Path) -> None:
    source = path.read_text()
    assert not source or source.startswith('"""')


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_and_classes_have_docstrings(path: Path) -> None:
    missing = [node.name for node in parse(path).body
               if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
               and not node.name.startswith("_") and ast.get_docstring(node) is None
               and not (package_of(path) == "cli" and node.name in COMMAND_SEAM)]
    assert not missing


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_level_state(path: Path) -> None:
    mutable = [ast.unparse(node) for node in parse(path).body if is_mutable(node)]
    rebound = [ast.unparse(node) for node in ast.walk(parse(path)) if isinstance(node, ast.Global)]
    assert not mutable + rebound, "annotate constant tables as Mapping or Sequence; keep state in objects"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_environment_is_read_in_settings_only(path: Path) -> None:
    if path.name == "settings.py":
        pytest.skip("this is the place")
    reads = [ast.unparse(node) for node in ast.walk(parse(path))
             if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")]
    assert not reads


@pytest.mark.parametrize("module", ["brise", "brise.cli.main", "brise.backends.reference.ops", "brise.engine.model",
                                    "brise.tune.data.prepare"])
def test_import_loads_no_heavy_package(module: str) -> None:
    check = (f"import sys, {module}; "
             "heavy = ('torch', 'transformers', 'gguf', 'pydantic', 'mistral_common'); "
             "print([name for name in heavy if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False,
                            env={"PYTHONPATH": str(ROOT / "src")} if runs_from_source() else None)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def runs_from_source() -> bool:
    """Whether brise under test is the working tree and not an installed copy."""
    return str(ROOT / "src") in sys.path


def package_of(path: Path) -> str:
    """models for src/brise/models/decoder.py, errors for src/brise/errors.py, cli for __main__.py."""
    first = path.relative_to(SOURCE).parts[0]
    return {"__init__.py": "", "__main__.py": "cli"}.get(first, first.removesuffix(".py"))


def brise_imports(path: Path) -> Iterator[str]:
    """Modules (and names) of brise that the file imports anywhere, without the leading `brise.`."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name their package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("brise.") for name in names if name.startswith("brise."))


def is_mutable(node: ast.stmt) -> bool:
    """Whether a statement of a module makes a list, dict or set that anybody could change."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return False
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith(("Mapping[", "Sequence[")):
        return False  # mypy refuses to change it
    makers = ("list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "count", "ContextVar")
    match node.value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call(func=func):
            return ast.unparse(func).rsplit(".", 1)[-1] in makers
        case _:
            return False


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())
