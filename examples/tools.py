"""Let a model call functions of this program, and answer with what they return.

    python examples/tools.py [MODEL]
"""

import sys

import brise


def wind(place: str) -> str:
    """The wind at a place. A real program would ask a weather service."""
    return {"Marseille": "mistral, 70 km/h", "Trieste": "bora, 90 km/h"}.get(place, "calm")


WIND = brise.Tool("wind", "The wind at a place now.", {
    "type": "object",
    "properties": {"place": {"type": "string", "enum": ["Marseille", "Trieste", "Nice"]}},
    "required": ["place"],
    "additionalProperties": False,
})

with brise.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2") as model:
    messages: list[brise.Message] = [{"role": "user", "content": "How strong is the wind in Marseille?"}]
    # "required": the answer is a call. With "auto" the model may also answer by itself, which small ones like to do.
    answer = model.chat(messages, tools=[WIND], tool_choice="required", parallel_tool_calls=False, temperature=0)
    messages.append(answer.message)
    for call in answer.calls:
        result = wind(str(call.arguments["place"]))
        print(f"{call.name}({call.arguments}) = {result}")
        messages.append(call.result(result))
    print(model.chat(messages, tools=[WIND], tool_choice="none", max_tokens=60, temperature=0))
