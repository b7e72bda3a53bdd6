"""Makes the prompt with which a model that hears writes down what is said, and nothing else (mistral-common 1.13).

    [INST] [BEGIN_AUDIO] [AUDIO] ... [/INST] lang:en [TRANSCRIBE]

The language is left out where it is not known.
"""

from __future__ import annotations

from dataclasses import replace

from brise.errors import RequestError
from brise.text.conversation import Chat
from brise.text.inputs import AudioInput
from brise.text.protocols import Encoded, TextTokenizer

TRANSCRIBE = "[TRANSCRIBE]"


def transcription(chat: Chat, tokenizer: TextTokenizer, audio: AudioInput, language: str | None) -> Encoded:
    """The prompt; `language` is a code of two letters (ISO 639-1). RequestError if the model does not transcribe."""
    token = tokenizer.control.get(TRANSCRIBE)
    if token is None:
        raise RequestError(f"the model does not transcribe: its vocabulary has no {TRANSCRIBE}", param="model",
                           code="no_transcription", hint="ask it in a chat: /v1/chat/completions reads 'input_audio'")
    asked = chat.prompt([{"role": "user", "content": [{"type": "input_audio", "audio": audio}]}])
    said = [] if language is None else tokenizer.encode(f"lang:{language}", before="special")
    return replace(asked, tokens=(*asked.tokens, *said, token))
