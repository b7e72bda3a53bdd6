# Sourced by the scripts beside it: finds the tools, makes the virtual environment, installs brise into it.
#
# BRISE_VENV    where the virtual environment lies (default: .venv in the clone)
# BRISE_PYTHON  the Python to make it with (default: the first one found that is new enough)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Without byte code every run of the tests would rewrite all their asserts: 10 s.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK=1

venv=${BRISE_VENV:-$PWD/.venv}
apt_line='sudo apt-get install -y python3 python3-venv python3-dev g++'

say() { printf '== %s\n' "$*" >&2; }

fail() { # message, hint
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

# Prints why $1 will not do, and nothing if it will.
python_lacks() {
    "$1" - 2>/dev/null <<'PYTHON' || echo 'does not run'
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit(print("is older than 3.11: %d.%d" % sys.version_info[:2]))
try:
    import ensurepip, venv
except ImportError:
    sys.exit(print("has no venv module"))
if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    sys.exit(print("has no headers (Python.h)"))
PYTHON
}

find_python() {
    local candidate lack reasons=''
    for candidate in ${BRISE_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        lack=$(python_lacks "$candidate")
        if [ -z "$lack" ]; then
            command -v "$candidate"
            return
        fi
        reasons="$reasons; $candidate $lack"
    done
    fail "no Python will do: version 3.11 or newer with venv and headers is needed${reasons:- (none found)}" "$apt_line"
}

find_compiler() {
    if [ -n "${CXX:-}" ]; then
        command -v "${CXX%% *}" >/dev/null || fail "CXX names '$CXX', which is not there" "$apt_line"
    else
        command -v g++ >/dev/null || command -v clang++ >/dev/null || fail 'no C++ compiler found' "$apt_line"
    fi
}

# What the installation was made from. Python sources count too: the installation is a copy.
stamp_of() {
    {
        printf '%s\n' "$@"
        find src native -type f ! -name '*.pyc' ! -name '*.so' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        sha256sum pyproject.toml constraints.txt CMakeLists.txt
    } | sha256sum
}

# Makes the virtual environment with the build tools in it: pinned, and without isolation, so that build/ can be reused.
prepare_build() {
    local python
    python=$(find_python)
    find_compiler
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        say "making a virtual environment in $venv with $("$python" -V)"
        "$python" -m venv --clear "$venv"
    fi
    say 'installing the build tools'
    "$venv/bin/python" scripts/locked.py -q scikit-build-core nanobind cmake ninja
}

# Installs brise with the extras $1 ('' or '[dev]') unless that is done already. An installation with the dev
# extra serves the demo as well.
install() {
    local extras=$1 stamp
    stamp=$(stamp_of '[dev]')
    [ -x "$venv/bin/brise" ] && [ "$(cat "$venv/brise.stamp" 2>/dev/null)" = "$stamp" ] && return
    stamp=$(stamp_of "$extras")
    [ -x "$venv/bin/brise" ] && [ "$(cat "$venv/brise.stamp" 2>/dev/null)" = "$stamp" ] && return
    rm -f "$venv/brise.stamp"
    prepare_build
    say 'compiling and installing brise (a minute or two the first time)'
    "$venv/bin/python" scripts/locked.py --no-build-isolation ".$extras"
    printf '%s\n' "$stamp" >"$venv/brise.stamp"
    say "installed: $("$venv/bin/brise" --version)"
}

lint() {
    say 'ruff'
    "$venv/bin/ruff" check .
    say 'mypy'
    "$venv/bin/mypy"
}
