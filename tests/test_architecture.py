"""The house rules that a machine can check: import arrows, sizes, no hidden state, no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.cpu_time import no_collection

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "brise"
MODULES = tuple(sorted(SOURCE.rglob("*.py")))
PYTHON = (*MODULES, *sorted(path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")))
NATIVE = tuple(sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in (".h", ".cpp")))
MAX_LINES, MAX_NATIVE_LINES, MAX_FUNCTION_LINES = 400, 500, 60
COMMAND_SEAM = ("add_parser", "run")  # the same two functions in every command's file
SHORT_LINES = 60
# Shorter than that with one importer beside them, and still a subject of their own: why.
SHORT_FILES: Mapping[str, str] = MappingProxyType({
    "cli/serve_keys.py": "the options of virtual keys, apart from those of the gateway, which plain serving has not",
    "cli/serve_telemetry.py": "the options of telemetry, apart from those of the gateway, which plain serving has not",
    "fleet/kill_points.py": "what cuts an update in tests, apart from each of its steps",
    "doctor/airgap/namespace.py": "the system calls of network namespaces, apart from whoever enters one",
    "doctor/reach.py": "the only part of an examination that opens connections",
    "serve/sparse_log.py": "what may be said how often, apart from what the server is made of",
    "serve/key_middleware.py": "middleware, of which each has a file"})
# Training computes on tensors; whoever serves or plans asks for a backend by its protocol.
NAMES_TORCH = ("tune", "memory")

# From the bottom to the top: a package imports itself and what stands before it.
ORDER = ("errors", "settings", "watch", "_native", "files", "models", "quant", "backends", "text", "data", "checkpoint",
         "hub", "engine", "memory", "convert", "stats", "evals", "tune", "dialects", "traffic", "gateway", "switch",
         "prove", "report", "robots", "serve", "fleet", "page", "deploy", "api", "demo", "doctor", "cli",
         "")  # "": the public names


@dataclass(frozen=True)
class Tree:
    """A module's statements, and all of its nodes: to walk 700 modules takes a second, and many tests look at them."""

    body: Sequence[ast.stmt]
    nodes: Sequence[ast.AST]


Trees = Mapping[Path, Tree]


@pytest.fixture(scope="module")
def trees() -> Trees:
    """Every module of brise, parsed once."""
    with no_collection():  # it would look at millions of nodes
        return {path: parse(path) for path in MODULES}


def test_imports_follow_the_arrows(trees: Trees) -> None:
    wrong = [f"{name_of(path)} imports {target}" for path, tree in trees.items() for target in brise_imports(tree)
             if target.split(".", maxsplit=1)[0] not in allowed(package_of(path))]
    assert not wrong, "a package imports itself and what stands before it in ORDER"


def test_imports_name_their_package(trees: Trees) -> None:
    relative = [f"{name_of(path)}:{node.lineno}" for path, tree in trees.items() for node in tree.nodes
                if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


def test_python_sizes(trees: Trees) -> None:
    assert not too_long(PYTHON, MAX_LINES)
    with no_collection():
        long = [f"{name_of(path)}: {node.name} has {length(node)} lines"
                for path in PYTHON for node in (trees.get(path) or parse(path)).nodes
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > MAX_FUNCTION_LINES]
    assert not long, f"functions have at most {MAX_FUNCTION_LINES} lines"


def test_native_sizes() -> None:
    assert not too_long(NATIVE, MAX_NATIVE_LINES)


def test_first_line_says_what_the_file_is() -> None:
    silent = [name_of(path) for path in MODULES if (source := path.read_text()) and not source.startswith('"""')]
    assert not silent


def test_public_functions_and_classes_have_docstrings(trees: Trees) -> None:
    missing = [f"{name_of(path)}: {node.name}" for path, tree in trees.items() for node in tree.body
               if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
               and not node.name.startswith("_") and ast.get_docstring(node) is None
               and not any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)
               and not (package_of(path) == "cli" and node.name in COMMAND_SEAM)]
    assert not missing


def test_no_import_cycles(trees: Trees) -> None:
    cycles = [" <-> ".join(sorted(group)) for group in strongly_connected(import_graph(trees)) if len(group) > 1]
    assert not cycles, "imports under TYPE_CHECKING and in functions count"


def test_short_files_with_one_importer_are_part_of_it(trees: Trees) -> None:
    graph = import_graph(trees)
    importers: dict[str, set[str]] = {name: set() for name in graph}
    for name, imported in graph.items():
        for other in imported:
            importers[other].add(name)
    slices = [f"{path.relative_to(SOURCE)} belongs in {importer}" for path in trees
              for name in [module_of(path)] if len(importers[name]) == 1 for importer in importers[name]
              if 0 < len(path.read_text().splitlines()) < SHORT_LINES and path.name != "__init__.py"
              and importer.rpartition(".")[0] == name.rpartition(".")[0]
              and str(path.relative_to(SOURCE)) not in SHORT_FILES]
    assert not slices, f"under {SHORT_LINES} lines; a subject of its own goes into SHORT_FILES with its reason"


def test_public_class_names_are_unique(trees: Trees) -> None:
    places: dict[str, list[str]] = {}
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_backends_are_named_by_their_chooser_only(trees: Trees) -> None:
    named = [f"{name_of(path)} imports {target}" for path, tree in trees.items() for target in brise_imports(tree)
             if target.startswith(("backends.native", "backends.reference", "backends.torch"))
             and package_of(path) != "backends"
             and not (target.startswith("backends.torch") and package_of(path) in NAMES_TORCH)]
    assert not named, "ask brise.backends for one, and use models/ops.py's protocols"


def test_architecture_names_files_that_exist() -> None:
    code = re.findall(r"`([^`\n]+)`", (ROOT / "ARCHITECTURE.md").read_text())
    named = {name for span in code for name in re.findall(r"[\w./*-]+\.(?:py|h|cpp)\b", span)}
    # A path is one from the root or from src/brise; a bare name is told in a section about its package.
    missing = [name for name in sorted(named) if not any(
        any(base.glob(name) if "/" in name else base.rglob(name)) for base in (SOURCE, ROOT / "native", ROOT))]
    assert not missing


def test_no_module_level_state(trees: Trees) -> None:
    mutable = [f"{name_of(path)}: {ast.unparse(node)}" for path, tree in trees.items()
               for node in tree.body if is_mutable(node)]
    rebound = [f"{name_of(path)}: {ast.unparse(node)}" for path, tree in trees.items()
               for node in tree.nodes if isinstance(node, ast.Global)]
    assert not mutable + rebound, "annotate constant tables as Mapping or Sequence; keep state in objects"


def test_environment_is_read_in_settings_only(trees: Trees) -> None:
    reads = [f"{name_of(path)}:{node.lineno}" for path, tree in trees.items() if path.name != "settings.py"
             for node in tree.nodes
             if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
             and ast.unparse(node) in ("os.environ", "os.getenv")]
    assert not reads


@pytest.mark.parametrize("module", ["brise", "brise.cli.main", "brise.backends.reference.ops", "brise.engine.model",
                                    "brise.data.prepare"])
def test_import_loads_no_heavy_package(module: str) -> None:
    check = (f"import sys, {module}; "
             "heavy = ('torch', 'transformers', 'gguf', 'pydantic', 'mistral_common'); "
             "print([name for name in heavy if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False,
                            env={"PYTHONPATH": str(ROOT / "src")} if runs_from_source() else None)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_a_server_loads_no_library_before_it_needs_one() -> None:
    check = ("import sys; from brise.cli.main import build_parser; build_parser(['serve']); "
             "heavy = ('httpx', 'rich', 'pygments', 'Crypto', 'cffi', 'jinja2', 'llguidance', 'huggingface_hub', "
             "'torch', 'numpy.random', 'mistral_common', 'PIL', 'cv2', 'opentelemetry', 'psycopg'); "
             "print([name for name in heavy if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False,
                            env={"PYTHONPATH": str(ROOT / "src")} if runs_from_source() else None)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def runs_from_source() -> bool:
    """Whether brise under test is the working tree and not an installed copy."""
    return str(ROOT / "src") in sys.path


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def too_long(paths: Sequence[Path], most: int) -> list[str]:
    """The files that have more than `most` lines."""
    counts = {name_of(path): len(path.read_text().splitlines()) for path in paths}
    return [f"{name}: {lines} lines, at most {most}" for name, lines in counts.items() if lines > most]


def allowed(package: str) -> tuple[str, ...]:
    """What a package may import of brise."""
    return (*ORDER[:ORDER.index(package) + 1], "__version__")


def package_of(path: Path) -> str:
    """models for src/brise/models/decoder.py, errors for src/brise/errors.py, cli for __main__.py."""
    first = path.relative_to(SOURCE).parts[0]
    return {"__init__.py": "", "__main__.py": "cli"}.get(first, first.removesuffix(".py"))


def brise_imports(tree: Tree) -> Iterator[str]:
    """Modules (and names) of brise that the file imports anywhere, without the leading `brise.`."""
    for node in tree.nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("brise.") for name in names if name.startswith("brise."))


def module_of(path: Path) -> str:
    """brise.models.decoder for src/brise/models/decoder.py, brise.backends for its __init__.py."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def import_graph(trees: Trees) -> dict[str, set[str]]:
    """Which modules of brise each of them imports, wherever in the file."""
    names = {module_of(path) for path in trees}
    graph: dict[str, set[str]] = {}
    for path, tree in trees.items():
        targets = [f"brise.{target}" for target in brise_imports(tree)]
        graph[module_of(path)] = {target if target in names else target.rpartition(".")[0] for target in targets
                                  if path != SOURCE / "__init__.py"} & names  # the public names are imported lazily
    return graph


def strongly_connected(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            groups.append(set(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    return groups


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


def parse(path: Path) -> Tree:
    module = ast.parse(path.read_text())
    return Tree(module.body, tuple(ast.walk(module)))
