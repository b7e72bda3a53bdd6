"""Train an adapter on examples, measure what it changed, and serve it beside the model.

    pip install 'brise[tune,eval]'
    python examples/tune_and_serve.py [MODEL] [STEPS]
"""

import sys
import tempfile
from pathlib import Path

import httpx

import brise

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 30
tickets = Path(__file__).with_name("tickets.jsonl")  # {"prompt": ..., "completion": ...}, one a line

with tempfile.TemporaryDirectory() as folder:
    run = brise.tune(tickets, model=name, out=Path(folder, "run"), steps=steps, rank=8)
    print(f"trained: {run.metrics}")
    assert run.adapter is not None and run.passed, "what is served is what was trained"

    with brise.load(name, adapters={"tickets": run.adapter}) as model:
        for adapter in (None, run.adapter):  # on the tenth of the examples that was held out
            scores = brise.evaluate(tickets, model=model, adapter=adapter, held_out_share=0.1, max_tokens=8,
                                    score="class")
            shown = {name: figure["estimate"] for name, figure in scores.figures.items()}
            print(f"{'with' if adapter else 'without'} the adapter: {shown}")

        with brise.serve(model, port=0) as server:  # the adapter is a model of its own for clients
            answer = httpx.post(f"{server.url}/chat/completions", timeout=60, json={
                "model": "tickets", "temperature": 0, "max_tokens": 8,
                "messages": [{"role": "user", "content": "Which team is this for: billing, shipping or technical? "
                                                         "Parcel 1234 has not moved for a week."}]})
            print(f"served: {answer.json()['choices'][0]['message']['content']!r}")
