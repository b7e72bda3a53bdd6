"""Find the text that is closest to a question.

    brise pull hf:Qwen/Qwen3-Embedding-0.6B-GGUF --name embedder
    python examples/embed.py [MODEL]
"""

import sys

import brise

TEXTS = ["The mistral blows from the north.", "Bread is baked at night.", "A gale breaks branches."]
QUESTION = "Which wind comes from the north?"

with brise.load(sys.argv[1] if len(sys.argv) > 1 else "embedder") as model:
    rows = model.embed(TEXTS)             # float32, one row of length 1 for each text
    cosines = rows @ model.embed(QUESTION)
    for cosine, text in sorted(zip(cosines.tolist(), TEXTS, strict=True), reverse=True):
        print(f"{cosine:.3f}  {text}")
