"""Do other programs predict the same from the files that brise writes? llama.cpp for a GGUF, transformers for a folder.

    python bench/agree.py model.gguf --peer-python ~/llama/bin/python    llama.cpp
    python bench/agree.py model-hf/                                      transformers (pip install 'brise[goldens]')

Logits of a text's tokens by brise's reference (NumPy, exact activations) against the other's: largest difference, root
of the mean square, both beside the spread of the logits, and how often the best token is the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.open import open_checkpoint
from brise.models import decoder
from brise.models.batch import Batch
from brise.text.load import tokens_for

PROSE = ("A breeze is a light wind. In the Beaufort scale it is a wind of force two to six, which is felt on the face, "
         "moves leaves and small branches, and raises dust and loose paper.")
SCRIPT = Path(__file__).parent.parent / "tests" / "checkpoint" / "llama_logits.py"
Logits = NDArray[np.float32]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("path", type=Path)
    arguments.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    arguments.add_argument("--text", type=Path, help="the first 256 tokens of this file, in place of a built-in text")
    given = arguments.parse_args()
    checkpoint = open_checkpoint(given.path)
    text = PROSE if given.text is None else given.text.read_text(encoding="utf-8")
    tokens = np.array(tokens_for(checkpoint).tokenizer.encode(text)[:256], np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)
    # Both others take LongRoPE's short factors here: llama.cpp for its context of 512, transformers for the length.
    config = checkpoint.config.for_context(len(tokens))
    ours = decoder.forward(ReferenceOps(), config, checkpoint.weights(),
                           Batch(tokens, positions, np.array([0, len(tokens)], np.int32), positions))
    theirs = (by_transformers(given.path, tokens) if given.path.is_dir()
              else by_llama(given.peer_python, given.path, tokens))
    difference = ours - theirs
    sys.stdout.write(
        f"{len(tokens)} tokens, spread of the logits {ours.std():.3f}\nlargest difference "
        f"{np.abs(difference).max():.5f}, root of the mean square {np.sqrt(np.mean(difference**2)):.5f}\n"
        f"same best token {np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)):.2%}\n")
    return 0


def by_llama(python: str, path: Path, tokens: NDArray[np.int32]) -> Logits:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        subprocess.run([python, str(SCRIPT), str(path), str(out), ",".join(map(str, tokens))], check=True)
        logits: Logits = np.load(out)
        return logits


def by_transformers(path: Path, tokens: NDArray[np.int32]) -> Logits:
    import torch  # noqa: PLC0415 - only this needs them
    import transformers  # noqa: PLC0415

    name = transformers.AutoConfig.from_pretrained(path).architectures[0]
    model = getattr(transformers, name).from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: Logits = model(input_ids=torch.tensor(tokens.astype(np.int64))[None]).logits[0].numpy()
    return logits


if __name__ == "__main__":
    raise SystemExit(main())
