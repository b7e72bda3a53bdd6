"""Answer a thousand prompts as fast as the machine allows, in order, and go on where one cannot be answered.

    python examples/batch.py [MODEL] [PROMPTS]
"""

import sys
import time

import brise

number = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
prompts = (f"Is {number} an even number? Answer yes or no." for number in range(number))  # read as they are needed

with brise.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2") as model:
    began = time.monotonic()
    tokens = failed = 0
    for result in model.batch(prompts, temperature=0, max_tokens=4):
        if result.error is not None:
            failed += 1
            print(f"prompt {result.index}: {result.error}")
            continue
        tokens += result.answer.usage.completion_tokens
        if result.index % 100 == 0:
            print(f"prompt {result.index}: {result.answer.text!r}")
    seconds = time.monotonic() - began
    print(f"{number} prompts, {failed} failed, {number / seconds:.0f} a second, {tokens / seconds:.0f} tokens a second")
