"""After `pull` nothing needs a network: chat and serve run in an empty network namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import no_network
from tests.checkpoint.make_gguf import write_tiny


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_chat_and_serve_without_a_network(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    write_tiny(model, "llama")
    done = subprocess.run([sys.executable, no_network.__file__, str(model)], capture_output=True, text=True,
                          timeout=280, check=False)
    if done.returncode == no_network.NO_PRIVILEGE:
        pytest.skip(f"no new network namespace: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
