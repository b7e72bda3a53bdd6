"""Audio over HTTP: parts of a chat, transcriptions through OpenAI's client, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from brise.backends.reference.ops import ReferenceBackend
from brise.engine.audio import open_audio
from brise.engine.model import LoadedModel, load
from brise.serve.multipart import FormPart
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_responses import parse_response
from brise.serve.prompts import chat_job
from brise.serve.serving import ServeSettings
from brise.serve.transcriptions import engine_request, parse_transcription
from brise.text.load import Tokens
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_chat import MistralChat
from tests.checkpoint import make_audio_model as make
from tests.engine.stub import stub_model
from tests.gateway.fake_upstream import answer
from tests.gateway.rig import rig
from tests.goldens.audio import read_audio
from tests.serve.live import Live, live
from tests.text import tekken

SAID = "Hello, this is a test."
AUDIO, BEGIN, TRANSCRIBE = 24, 25, 38
CHUNK_TOKENS = 4  # of the golden's encoder: of 0.32 seconds


def tokens(folder: Path) -> Tokens:
    names = tekken.control_names("v13")
    path = tekken.write(folder, "v13", control=[make.CONTROL.get(index, name) for index, name in enumerate(names)])
    tokenizer = MistralTokenizer(path)
    return Tokens(tokenizer, MistralChat(tokenizer, tokenizer.common))


def hearing(folder: Path, reply: str | None = SAID) -> LoadedModel:
    golden = read_audio()
    return stub_model(reply, audio=open_audio(golden.config, golden.weights, ReferenceBackend()), tokens=tokens(folder))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(hearing(tmp_path_factory.mktemp("tokens"), f" {SAID} ")) as running:
        yield running


def part(data: bytes, format: str = "wav") -> dict[str, object]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": format}}


def url_part(data: bytes) -> dict[str, object]:
    return {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + base64.b64encode(data).decode()}}


def asking(*parts: dict[str, object]) -> dict[str, object]:
    return {"model": "stub", "messages": [{"role": "user", "content": list(parts)}], "temperature": 0}


def test_a_chat_hears(server: Live) -> None:
    with server.client() as client:
        for heard in (part(make.speech(0.5)), url_part(make.speech(0.5)),
                      {"type": "input_audio", "input_audio": base64.b64encode(make.speech(0.5)).decode()}):
            said = client.chat.completions.create(**asking(heard, {"type": "text", "text": "what is said"}))
            assert said.choices[0].message.content.strip() == SAID
            plain = client.chat.completions.create(**asking({"type": "text", "text": "what is said"}))
            assert said.usage.prompt_tokens == plain.usage.prompt_tokens + 1 + 2 * CHUNK_TOKENS


def test_a_response_hears(server: Live) -> None:
    with server.client() as client:
        heard = {"type": "input_audio", "input_audio": {
            "data": base64.b64encode(make.speech(0.2)).decode(), "format": "wav"}}
        said = client.responses.create(model="stub", input=[{"role": "user", "content": [heard]}])
        assert said.output_text.strip() == SAID


def test_the_audio_stands_where_its_part_stands(tmp_path: Path) -> None:
    model = hearing(tmp_path)
    job = chat_job(parse_chat(asking({"type": "text", "text": "a"}, part(make.speech(0.4)),
                                     {"type": "text", "text": "b"}, url_part(make.speech(0.1, 1)))), model)
    prompt, audios = job.request.prompt, job.request.audios
    assert [len(audio.chunks) for audio in audios] == [2, 1]
    starts = [index for index, token in enumerate(prompt) if token == BEGIN]
    assert [prompt[start:start + len(audio.tokens)] for start, audio in zip(starts, audios, strict=True)] == [
        audio.tokens for audio in audios]
    assert model.tokenizer.decode(prompt[starts[0] + 9:starts[1]]) == "b"


def test_a_transcription_through_openai_s_client(server: Live) -> None:
    with server.client() as client:
        made = client.audio.transcriptions.create(model="stub", file=("speech.wav", make.speech(0.5)), language="en")
        assert made.text == SAID
        assert made.usage is not None and made.usage.type == "tokens"
        assert made.usage.input_token_details.audio_tokens == 2 * CHUNK_TOKENS
        assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
        text = client.audio.transcriptions.create(model="stub", file=("speech.wav", io.BytesIO(make.speech(0.1))),
                                                  response_format="text", temperature=0)
        assert text.strip() == SAID


def test_a_transcription_in_a_stream(server: Live) -> None:
    with server.client() as client:
        events = list(client.audio.transcriptions.create(model="stub", file=("a.wav", make.speech(0.5)), stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1) and len(events) > 2
    assert "".join(event.delta for event in events[:-1]) == SAID == events[-1].text
    assert events[-1].usage.input_token_details.audio_tokens == 2 * CHUNK_TOKENS


def test_the_prompt_of_a_transcription_is_mistral_common_s(tmp_path: Path) -> None:
    model = hearing(tmp_path)
    form = [FormPart("model", b"stub", False), FormPart("file", make.speech(0.5), True),
            FormPart("language", b"fr", False)]
    request = engine_request(parse_transcription(form), model)
    bos, inst, end = (model.tokenizer.control[name] for name in ("<s>", "[INST]", "[/INST]"))
    said = model.tokenizer.encode("lang:fr")
    assert request.prompt == (bos, inst, BEGIN, *(AUDIO,) * 8, end, *said, TRANSCRIBE)
    assert request.sampling.temperature == 0


REFUSED = [
    ({"response_format": "verbose_json"}, "response_format", "'verbose_json'"),
    ({"response_format": "srt"}, "response_format", "'srt'"), ({"language": "english"}, "language", "ISO 639-1"),
    ({"prompt": "names: Ada"}, "prompt", "no place for a text"), ({"temperature": "9"}, "temperature", "0 to 2"),
    ({"temperature": "warm"}, "temperature", "a number"), ({"timestamp_granularities[]": "word"},
                                                          "timestamp_granularities[]", "no times"),
    ({"include[]": "logprobs"}, "include[]", "log-probabilities"), ({"stream": "maybe"}, "stream", "'maybe'")]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_fields_that_cannot_be_honoured_are_named(server: Live, fields: dict[str, str], param: str,
                                                  message: str) -> None:
    answered = httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "stub"} | fields,
                        files={"file": ("a.wav", make.speech(0.1))})
    assert answered.status_code == 400, answered.text
    error = answered.json()["error"]
    assert error["param"] == param and message in error["message"]


def test_what_changes_no_answer_is_accepted_and_reported(server: Live) -> None:
    answered = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": ("a.wav", make.speech(0.1))},
                        data={"model": "stub", "prompt": "", "chunking_strategy": "auto", "colour": "blue"})
    assert answered.status_code == 200, answered.text
    assert answered.json()["brise"] == {"ignored": {"colour": "it is not known here"}}


@pytest.mark.parametrize(("content", "message"), [
    (b"ID3\x04", "is MP3; read is WAV"), (b"fLaC\0\0\0\0", "is FLAC; read is WAV"), (b"OggS\0", "is Ogg"),
    (b"\0\0\0\x20ftypM4A ", "is MP4"), (b"", "is empty"), (b"RIFF\0\0\0\0WAVE", "no chunk 'data'"),
    (make.wav(b"\0" * 8, 7, 8, 8000, 1), "in mu-law"), (make.wav(b"\0" * 8, 1, 16, 4000, 1), "4000 samples a second"),
    (make.wav(b"\0" * 90, 1, 16, 8000, 9), "9 channels"), (make.wav(b"", 1, 16, 8000, 1), "has no samples")])
def test_a_file_that_is_not_read_is_named(server: Live, content: bytes, message: str) -> None:
    answered = httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "stub"},
                        files={"file": ("a.wav", content)})
    assert answered.status_code == 400, answered.text
    assert message in answered.json()["error"]["message"] and answered.json()["error"]["param"] == "file"


def test_a_model_without_ears_says_so(tmp_path: Path) -> None:
    with live(stub_model("I am deaf.", tokens=tokens(tmp_path))) as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match="has no audio encoder"):
            client.chat.completions.create(**asking(part(make.speech(0.1))))
        with pytest.raises(openai.BadRequestError, match="'file' is audio, and stub takes none"):
            client.audio.transcriptions.create(model="stub", file=("a.wav", make.speech(0.1)))


@pytest.mark.parametrize(("heard", "message"), [
    (part(b"x", "mp3"), "format' is not supported: 'mp3'; read is 'wav'"), (part(b"x", "wma"), "is 'wma', allowed is"),
    ({"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/a.wav"}}, "this server fetches no audio"),
    ({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}, "is not base64"),
    ({"type": "input_audio", "input_audio": {"format": "wav"}}, "data' is missing")])
def test_parts_that_are_not_read_are_named(server: Live, heard: dict[str, object], message: str) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError, match=message.replace("?", r"\?")):
        client.chat.completions.create(**asking(heard))


def test_audio_longer_than_the_context_is_refused_before_it_is_encoded(server: Live) -> None:
    before = server.engine.stats().audio_chunks
    with server.client() as client, pytest.raises(openai.BadRequestError, match="context"):
        client.audio.transcriptions.create(model="stub", file=("a.wav", make.speech(0.32 * 1100, rate=8000)))
    assert server.engine.stats().audio_chunks == before


def test_another_site_s_page_cannot_make_the_machine_work(server: Live) -> None:
    answered = httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "stub"},
                        files={"file": ("a.wav", make.speech(0.1))}, headers={"origin": "https://evil.example"})
    assert answered.status_code == 403 and answered.json()["error"]["code"] == "cross_site"


def test_a_real_model_hears_the_difference(tmp_path: Path) -> None:
    model = load(make.write_hearing(tmp_path), threads=1)
    with live(model) as server, server.client() as client:
        said = [client.audio.transcriptions.create(
            model="stub", file=("a.wav", make.speech(0.5, seed)),
            extra_body={"max_completion_tokens": 12}).text for seed in (0, 1, 0)]
        assert said[0] == said[2] != said[1] and server.engine.stats().audio_chunks == 4


def test_a_conversation_of_the_responses_api_reads_audio() -> None:
    heard = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    request = parse_response({"model": "stub", "input": [{"role": "user", "content": [heard]}]})
    (message,) = request.chat.messages
    assert isinstance(message.content, tuple) and message.content[0].name == "input[0].content[0].input_audio.data"


def test_behind_a_gateway_models_of_this_server_hear_here_and_others_at_their_upstream(tmp_path: Path) -> None:
    data = make.speech(0.1)
    with rig(model=hearing(tmp_path)) as made:
        made.fake.default = answer({"text": "from the upstream"})
        for model, said in (("stub", SAID), ("whisper-1", "from the upstream")):
            answered = made.live.post("/v1/audio/transcriptions", data={"model": model},
                                      files={"file": ("a.wav", data)})
            assert answered.status_code == 200, answered.text
            assert answered.json()["text"] == said
        (sent,) = made.fake.received
        assert data in sent.body and b"whisper-1" in sent.body  # as it came
        refused = made.live.post("/v1/audio/translations", data={"model": "stub"}, files={"file": ("a.wav", data)})
        assert refused.status_code == 404 and "'stub' is served here" in refused.json()["error"]["message"]
        assert len(made.fake.received) == 1


def test_a_form_has_a_largest_size_and_a_type(tmp_path: Path) -> None:
    with live(hearing(tmp_path), ServeSettings(max_body_bytes=1000)) as server:
        answered = httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "stub"},
                              files={"file": ("a.wav", make.speech(0.5))})
        assert answered.status_code == 413 and answered.json()["error"]["code"] == "body_too_large"
        wrong = httpx.post(f"{server.url}/v1/audio/transcriptions", json={"model": "stub"})
        assert wrong.status_code == 415 and wrong.json()["error"]["code"] == "unsupported_media_type"
