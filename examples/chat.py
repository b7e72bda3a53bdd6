"""Ask a model, and go on with the conversation.

    python examples/chat.py [MODEL]
"""

import sys

import brise

with brise.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2") as model:
    messages: list[brise.Message] = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What is a breeze?"},
    ]
    answer = model.chat(messages, max_tokens=60)
    print(answer)

    messages += [answer.message, {"role": "user", "content": "And what is a gale?"}]
    answer = model.chat(messages, max_tokens=60)
    print(answer)
    usage = answer.usage
    print(f"({answer.finish}; {usage.prompt_tokens} tokens of prompt, {usage.cached_tokens} of them cached)")
