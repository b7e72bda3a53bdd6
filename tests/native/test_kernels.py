"""The kernels without Python: native/tests compiled for this machine and, under an emulator, for 64-bit ARM.

For this machine the kernels are those that the installation left in build/, if no source is newer. Others are compiled
here: flags come from CMakeLists.txt, with -O1 in place of -O3, which takes half the time; the intrinsics are the same.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent.parent
NATIVE = ROOT / "native"
SOURCES = (*sorted((NATIVE / "tests").glob("*.cpp")), NATIVE / "dispatch.cpp", NATIVE / "formats.cpp")
ARM_TOOLS = "sudo apt-get install -y g++-aarch64-linux-gnu qemu-user"


@dataclass(frozen=True)
class Target:
    """How to compile for a processor and run what comes out."""

    compiler: str
    define: str
    isas: tuple[str, ...]
    link: tuple[str, ...] = ()
    run: tuple[str, ...] = ()


def test_kernels_on_this_machine(pytestconfig: pytest.Config) -> None:
    build = build_for(host(), pytestconfig)
    report = run(build, host())
    assert re.search(r"^scalar +attend", report, re.MULTILINE), report


def test_kernels_on_emulated_arm(pytestconfig: pytest.Config) -> None:
    report = run(build_for(emulated_arm(), pytestconfig), emulated_arm())
    assert re.search(r"^neon +linear_q Q4_K", report, re.MULTILINE), report


def test_no_code_of_one_instruction_set_leaks_into_another(pytestconfig: pytest.Config) -> None:
    # The linker keeps one of several equal inline functions. Were it the one compiled with AVX-512, a
    # processor without it would stop at an illegal instruction; so all that is shared is in a namespace of
    # its own.
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm (binutils)")
    build = build_for(host(), pytestconfig)
    for isa in host().isas:
        symbols = output_of([nm, "-C", f"isa_{isa}.o"], build)
        shared = re.findall(r"^\w* [VWu] (.*)$", symbols, re.MULTILINE)
        assert shared
        assert [name for name in shared if f"{isa}::" not in name] == []


def host() -> Target:
    """This machine; skips where it has no compiler or is of a kind that we have no kernels for."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler: sudo apt-get install -y g++")
    if platform.machine() in ("x86_64", "AMD64"):
        return Target(compiler, "BRISE_X86", ("avx512", "avx2", "scalar"))
    if platform.machine() in ("aarch64", "arm64"):
        return Target(compiler, "BRISE_ARM", ("neon", "scalar"))
    pytest.skip(f"no kernels for {platform.machine()}")


def emulated_arm() -> Target:
    """64-bit ARM under qemu; skips where the cross compiler or the emulator is missing."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        missing = "aarch64-linux-gnu-g++" if compiler is None else "qemu-aarch64"
        pytest.skip(f"needs {missing}: {ARM_TOOLS}")
    return Target(compiler, "BRISE_ARM", ("neon", "scalar"), ("-static",), (emulator, "-cpu", "max"))


def run(build: Path, target: Target) -> str:
    """The report of all kernels, none of which failed."""
    report = output_of([*target.run, "./kernel_test"], build)
    assert re.search(r"^\d+ passed, 0 failed$", report, re.MULTILINE), report
    return report


def build_for(target: Target, pytestconfig: pytest.Config) -> Path:
    """Compiles in parallel, into a folder of pytest's cache that belongs to these sources and flags."""
    compiles = commands(target)
    cache = pytestconfig.cache
    assert cache is not None
    builds = cache.mkdir("kernels")
    folder = builds / f"{target.define}-{digest(compiles)}"
    if folder.exists():
        return folder
    with TemporaryDirectory(dir=builds) as part:  # renamed when complete: two runs at once do no harm
        new = Path(part) / "build"
        new.mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: output_of(command, new), compiles))
        output_of([target.compiler, *target.link, *(command[-1] for command in compiles), "-o", "kernel_test"], new)
        for old in builds.glob(f"{target.define}-*"):
            shutil.rmtree(old, ignore_errors=True)
        new.rename(folder)
    return folder


def commands(target: Target) -> list[list[str]]:
    """One for each object, the longest first: less waiting at the end. The object's name comes last."""
    compile_it = [target.compiler, "-std=c++20", "-Wall", "-Wextra", f"-I{NATIVE}", f"-D{target.define}"]
    kernels = [["cp", str(found), f"isa_{isa}.o"] if (found := installed(isa, target)) else
               [*compile_it, "-O1", *isa_flags(isa), "-c", str(NATIVE / "isa.cpp"), "-o", f"isa_{isa}.o"]
               for isa in target.isas]
    return [*kernels, *([*compile_it, "-O2", "-c", str(path), "-o", f"{path.stem}.o"] for path in SOURCES)]


def installed(isa: str, target: Target) -> Path | None:
    """The object that the installation compiled of the kernels, where it is newer than what it is made of."""
    if target.run:
        return None
    sources = (*NATIVE.glob("*.h"), NATIVE / "isa.cpp", ROOT / "CMakeLists.txt")
    newest = max(path.stat().st_mtime for path in sources)
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    found = ROOT.glob(f"build/cp*-{tag}/CMakeFiles/isa_{isa}.dir/native/isa.cpp.o")  # pyproject.toml: build-dir
    return next((path for path in found if path.stat().st_mtime > newest), None)


def isa_flags(isa: str) -> list[str]:
    """What CMakeLists.txt compiles the kernels of an instruction set with, without the optimization."""
    text = (ROOT / "CMakeLists.txt").read_text()
    own = re.search(rf"add_isa\({isa} (\w+)(.*)\)", text)
    common = re.search(r"target_compile_options\(isa_\S+ PRIVATE\s(.*?)\$\{ARGN\}\)", text, re.DOTALL)
    assert own and common, "CMakeLists.txt lists the instruction sets in another form"
    flags = [flag for flag in common[1].split() if flag != "${BRISE_OPTIMIZATION}"]
    return [*flags, f"-DBRISE_ISA={isa}", f"-DBRISE_{own[1]}", *own[2].split()]


def digest(compiles: Sequence[Sequence[str]]) -> str:
    """A name for the compiler, the flags, every native source and the installed kernels that are taken."""
    compiler = Path(compiles[-1][0]).resolve()
    state = hashlib.sha256(f"{compiler} {compiler.stat()} {compiles}".encode())
    taken = [Path(command[1]) for command in compiles if command[0] == "cp"]
    for path in [*sorted(NATIVE.rglob("*")), *taken]:
        if path.suffix in (".h", ".cpp", ".o"):
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


def output_of(command: Sequence[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
