"""Show an answer while the model writes it.

    python examples/stream.py [MODEL]
"""

import sys

import brise

with brise.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2") as model:
    with model.stream("Name three winds, and where they blow.", max_tokens=120, seed=1) as stream:
        for piece in stream:
            print(piece, end="", flush=True)
    print(f"\n({stream.answer.usage.completion_tokens} tokens)")
