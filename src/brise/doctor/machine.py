"""The machine: versions, the processor and its kernels, memory and processors that control groups leave, disks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import brise
from brise import settings
from brise.backends import num_cores, open_planner
from brise.doctor.findings import Finding
from brise.errors import BriseError
from brise.watch import size_text

LEAST_PYTHON = (3, 11)
# Loading smollm2 takes about 250 MB, a pull of it 200 MB on disk; SQLite and training need more to move in.
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 1_000_000_000, 2_000_000_000, 100_000_000
FEW_FILES = 1024  # connections of a server are files
# What the kernels ask for (native/dispatch.cpp), and what they could use in a later version.
_FEATURES: Sequence[str] = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni",
                            "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve")
_CORE: Sequence[str] = ("numpy", "tokenizers", "jinja2", "llguidance", "starlette", "uvicorn", "httpx",
                        "pycryptodome")
_CGROUPS = Path("/sys/fs/cgroup")


def examine(home: Path) -> Iterator[Finding]:
    """All of the machine."""
    yield from _versions()
    yield from _processor()
    yield from _memory()
    yield from _disks(home)


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "brise", "PASS", brise.__version__)
    version = f"{platform.python_implementation()} {platform.python_version()}"
    allowed = f"{LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or later"
    if sys.version_info < LEAST_PYTHON:
        yield Finding("versions", "Python", "FAIL", f"{version}, needed is {allowed}")
    else:
        yield Finding("versions", "Python", "PASS", version)
    yield Finding("versions", "system", "PASS" if sys.platform.startswith("linux") else "WARN",
                  f"{platform.system()} {platform.release()} on {platform.machine()}, "
                  + " ".join(platform.libc_ver()).strip(), "" if sys.platform.startswith("linux") else
                  "brise is tested on Linux only")
    missing, versions = [], []
    for name in _CORE:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("versions", "packages", "FAIL", f"missing: {', '.join(missing)}", "pip install brise")
    else:
        yield Finding("versions", "packages", "PASS", ", ".join(versions))


def _processor() -> Iterator[Finding]:
    fields = _cpu_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    found = [name for name in _FEATURES if name in flags]
    yield Finding("processor", "model", "PASS", f"{fields.get('model name') or platform.machine()}, "
                  f"{num_cores()} cores of {os.cpu_count()} hardware threads are ours")
    yield Finding("processor", "features", "NOTE", ", ".join(found) or "none of those that kernels use")
    try:
        isa = str(open_planner(threads=1).facts()["isa"])
    except (BriseError, ImportError, ValueError) as error:
        yield Finding("processor", "kernels", "FAIL", f"the compiled kernels do not load: {error}",
                      "pip install --force-reinstall brise")
        return
    if isa == "scalar":
        yield Finding("processor", "kernels", "WARN", "scalar: this processor has no instruction set that kernels are "
                      "written for, so answers are slow")
    else:
        yield Finding("processor", "kernels", "PASS", isa)
    yield from _threads()


def _threads() -> Iterator[Finding]:
    threads, quota = settings.read().threads or num_cores(), _cpu_quota()
    text = f"{threads} for the kernels"
    if quota is not None and threads > quota:
        yield Finding("processor", "threads", "WARN", f"{text}, but the control group leaves {quota:g} processors",
                      f"BRISE_THREADS={max(1, int(quota))}: threads that wait for each other slow each other down")
    else:
        yield Finding("processor", "threads", "PASS", text + ("" if quota is None else f", {quota:g} processors"))


def _memory() -> Iterator[Finding]:
    total, available = _meminfo("MemTotal"), _meminfo("MemAvailable")
    limit, used = _memory_limit()
    if limit is not None and used is not None:
        available = min(available or limit, limit - used)
    if total is None or available is None:
        yield Finding("memory", "available", "NOTE", "/proc/meminfo cannot be read")
    else:
        text = f"{size_text(available)} of {size_text(total)}"
        yield (Finding("memory", "available", "WARN", text, "brise plan MODEL says what a model takes")
               if available < LITTLE_MEMORY else Finding("memory", "available", "PASS", text))
    if limit is None:
        yield Finding("memory", "control group", "PASS", "no limit")
    else:
        yield Finding("memory", "control group", "NOTE", f"{size_text(limit)}, of which {size_text(used or 0)} are in "
                      "use", "give brise less by --memory: what exceeds a control group's limit is killed")
    for name, number in (("address space", resource.RLIMIT_AS), ("locked", resource.RLIMIT_MEMLOCK)):
        soft = resource.getrlimit(number)[0]
        if name == "address space" and soft != resource.RLIM_INFINITY:
            yield Finding("memory", name, "WARN", f"limited to {size_text(soft)} (ulimit -v)",
                          "mapped model files count, too; ulimit -v unlimited")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield (Finding("memory", "open files", "WARN", f"{files} (ulimit -n)", "a server keeps no more connections than "
                   "that") if files < FEW_FILES else Finding("memory", "open files", "PASS", str(files)))


def _disks(home: Path) -> Iterator[Finding]:
    for name, folder in (("BRISE_HOME", home), ("temporary", Path(tempfile.gettempdir()))):
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        try:
            free = shutil.disk_usage(there).free
        except OSError as error:
            yield Finding("disk", name, "FAIL", f"{folder}: {error.strerror}")
            continue
        text = f"{size_text(free)} free at {folder}"
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("disk", name, "FAIL", f"{there} cannot be written",
                          "set BRISE_HOME to a folder of yours" if name == "BRISE_HOME" else "set TMPDIR")
        elif free < NO_DISK:
            yield Finding("disk", name, "FAIL", text, f"less than {size_text(NO_DISK)}: make room")
        elif free < LITTLE_DISK:
            yield Finding("disk", name, "WARN", text, f"less than {size_text(LITTLE_DISK)}")
        else:
            yield Finding("disk", name, "PASS", text)


def _cpu_fields() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _meminfo(field: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def groups(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The folders of this process's control group and of those around it (version 2)."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        return []
    folder = root / path.strip("/")
    return [one for one in (folder, *folder.parents) if one.is_relative_to(root) and one.is_dir()]


def _memory_limit() -> tuple[int | None, int | None]:
    """The lowest limit of the control groups, and what is used of it."""
    limits = [(limit, _number(group / "memory.current")) for group in groups()
              if (limit := _number(group / "memory.max")) is not None]
    first = _CGROUPS / "memory"  # version 1; no limit is a number near 2^63
    old = _number(first / "memory.limit_in_bytes")
    if old is not None and old < 1 << 60:
        limits.append((old, _number(first / "memory.usage_in_bytes")))
    return min(limits, key=lambda one: one[0] - (one[1] or 0), default=(None, None))


def _cpu_quota() -> float | None:
    """Processors that the control groups leave: the lowest of their quotas."""
    quotas = []
    for group in groups():
        try:
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            quotas.append(int(quota) / int(period))
    old, period_us = _number(_CGROUPS / "cpu/cpu.cfs_quota_us"), _number(_CGROUPS / "cpu/cpu.cfs_period_us")
    if old is not None and period_us and old > 0:
        quotas.append(old / period_us)
    return min(quotas, default=None)


def _number(path: Path) -> int | None:
    """The number in a file of a control group; None if there is none, or no limit."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
