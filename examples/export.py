"""Write a model for other engines: a GGUF file for llama.cpp and Ollama, a folder for vLLM and transformers.

    python examples/export.py [MODEL] [FOLDER]
"""

import sys
from pathlib import Path

import brise

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "exported")
folder.mkdir(exist_ok=True)

for exported in (brise.export(model, folder / "model-f16.gguf", format="gguf", dtype="f16"),
                 brise.export(model, folder / "model-hf", format="hf", dtype="bf16")):
    print(f"{exported.out}: {exported.dtype}, {exported.num_bytes / 1e6:.1f} MB")

small = brise.quantize(folder / "model-f16.gguf", folder / "model-q8_0.gguf", mix="Q8_0")
print(f"{small.written.path}: {small.written.bits_per_weight:.2f} bits a weight")
