"""
OpenAI's REST for recorded audio, as its SDKs, LiveKit and Pipecat use it: transcriptions,
translations, and the list of models.

What has an effect, and what has none, is in docs/compatibility.md.
Source: https://platform.openai.com/docs/api-reference/audio
"""

import math
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dalston.gateway.files.refused import Refused
from dalston.gateway.files.subtitles import srt, vtt
from dalston.gateway.files.transcriber import Here, Spoken, Transcriber
from dalston.gateway.files.transcript import Transcript, whole
from dalston.gateway.files.upload import Upload, drop_rest
from dalston.gateway.protocols.vendors import flag, language, number, settings, variant
from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.protocol.messages import (
    LONGEST_PROMPT,
    Final,
    SessionConfig,
    SessionEnd,
)
from dalston.orchestrator.protocol.parameters import ParameterError
from dalston.triton.contract import LANGUAGES, SPACELESS, Task

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
# Whisper's names of its languages, in the order of LANGUAGES.
_NAMES = (
    "english,chinese,german,spanish,russian,korean,french,japanese,portuguese,turkish,polish,"
    "catalan,dutch,arabic,swedish,italian,indonesian,hindi,finnish,vietnamese,hebrew,ukrainian,"
    "greek,malay,czech,romanian,danish,hungarian,tamil,norwegian,thai,urdu,croatian,bulgarian,"
    "lithuanian,latin,maori,malayalam,welsh,slovak,telugu,persian,latvian,bengali,serbian,"
    "azerbaijani,slovenian,kannada,estonian,macedonian,breton,basque,icelandic,armenian,nepali,"
    "mongolian,bosnian,kazakh,albanian,swahili,galician,marathi,punjabi,sinhala,khmer,shona,"
    "yoruba,somali,afrikaans,occitan,georgian,belarusian,tajik,sindhi,gujarati,amharic,yiddish,"
    "lao,uzbek,faroese,haitian creole,pashto,turkmen,nynorsk,maltese,sanskrit,luxembourgish,"
    "myanmar,tibetan,tagalog,malagasy,assamese,tatar,hawaiian,lingala,hausa,bashkir,javanese,"
    "sundanese,cantonese"
).split(",")
NAMES: dict[str, str] = dict(zip(LANGUAGES, _NAMES, strict=True))

routes = APIRouter()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Asked:
    config: SessionConfig
    format: str
    granularities: Sequence[str]
    streams: bool


@routes.post("/v1/audio/transcriptions")
async def transcriptions(request: Request, here: Here) -> Response:
    return await _answer(request, here, "transcribe")


@routes.post("/v1/audio/translations")
async def translations(request: Request, here: Here) -> Response:
    """Into English."""
    return await _answer(request, here, "translate")


@routes.get("/v1/models")
async def models(request: Request, here: Here) -> Response:
    try:
        listed = await _models(request, here)
    except Refused as refused:
        return _error(refused)
    return _json({"object": "list", "data": listed})


@routes.get("/v1/models/{model:path}")
async def model(model: str, request: Request, here: Here) -> Response:
    try:
        listed = await _models(request, here)
        found = next((one for one in listed if one["id"] == model), None)
        if found is None:
            raise Refused("model_not_found", f"the model {model[:200]!r} does not exist", "model")
    except Refused as refused:
        return _error(refused)
    return _json(found)


async def _models(request: Request, here: Transcriber) -> list[dict[str, Any]]:
    """The variants that workers serve, each with the checkpoints that it is. Raises Refused."""
    await here.holder(request, "files", "stream", "read")
    try:
        workers = await request.app.state.gateway.slots.workers()
    except RedisError:
        raise Refused("no_capacity", "the register of workers cannot be reached") from None
    found = dict[str, set[str]]()
    for worker in workers:
        for name in worker.models:
            checkpoint = worker.checkpoints.get(name)
            found.setdefault(name, set()).update([checkpoint] if checkpoint else [])
    about = {"object": "model", "created": 0, "owned_by": "dalston"}
    return [{"id": name, **about, "checkpoints": sorted(found[name])} for name in sorted(found)]


async def _answer(request: Request, here: Transcriber, task: Task) -> Response:
    try:
        async with AsyncExitStack() as stack:
            upload = await stack.enter_async_context(here.upload(request, form=True))
            asked = _asked(upload, task)
            spoken = here.transcribe(request, upload.file, asked.config)
            await stack.enter_async_context(aclosing(spoken))
            if not asked.streams:
                return _written(asked, await whole(spoken))
            await anext(spoken)  # what is refused at the beginning is refused in HTTP
            return _Stream(_events(spoken, asked.config), stack.pop_all())
    except Refused as refused:
        await drop_rest(request)
        return _error(refused)
    except (ClientDisconnect, Disconnected):
        return Response(status_code=499)  # to nobody


def _asked(upload: Upload, task: Task) -> Asked:
    """Raises Refused."""
    name = "response_format"
    try:
        if not upload.has_file:
            raise Refused("invalid_parameter", "there is no file in the form", "file")
        if not (model := upload.one("model")):
            raise Refused("invalid_parameter", "you must provide a model parameter", "model")
        form = upload.one(name, "json")
        if form not in FORMATS:
            sentence = f"{name}={form[:50]!r} is not possible here; it may be {', '.join(FORMATS)}"
            raise Refused("invalid_parameter", sentence, name)
        name = "timestamp_granularities[]"
        granularities = upload.all(name) or upload.all("timestamp_granularities") or ["segment"]
        if wrong := set(granularities) - set(GRANULARITIES):
            sentence = f"{name}={min(wrong)[:50]!r}; it may be {', '.join(GRANULARITIES)}"
            raise Refused("invalid_parameter", sentence, name)
        if upload.one("temperature"):
            number("temperature", upload.one("temperature"), 0, 1)  # which changes nothing
        several = [language(code) for code in upload.all("languages[]")]
        spoken = upload.one("language")
        config = settings(
            {
                "model": variant(model),
                "language": language(spoken) if spoken and not several else "auto",
                "languages": ",".join(several) or None,
                "task": task,
                # Of a longer one the models would take the end as well.
                "prompt": upload.one("prompt")[-LONGEST_PROMPT:] or None,
                "word_timestamps": form == "verbose_json" and "word" in granularities,
            },
            upload.all("keywords[]"),
        )
        return Asked(config, form, granularities, flag("stream", upload.one("stream")))
    except ParameterError as error:
        several = error.name in ("keywords", "languages")
        raise Refused(
            error.code, str(error), f"{error.name}[]" if several else error.name
        ) from None


# --- what is answered -----------------------------------------------------------------------------


def _written(asked: Asked, said: Transcript) -> Response:
    match asked.format:
        case "text":
            return _text(said.text + "\n")
        case "srt":
            return _text(srt(said.finals))
        case "vtt":
            return _text(vtt(said.finals))
        case "verbose_json":
            return _json(_verbose(asked, said))
        case _:
            return _json({"text": said.text, "usage": _usage(said.duration_s)})


def _verbose(asked: Asked, said: Transcript) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": asked.config.task,
        "language": NAMES.get(said.language, said.language),
        "duration": said.duration_s,
        "text": said.text,
        "usage": _usage(said.duration_s),
    }
    if "segment" in asked.granularities:
        body["segments"] = [_segment(number, final) for number, final in enumerate(said.finals)]
    if "word" in asked.granularities:
        body["words"] = [
            {"word": word.word.strip(), "start": word.start, "end": word.end} for word in said.words
        ]
    return body


def _segment(number: int, final: Final) -> dict[str, Any]:
    text = final.text.encode()
    return {
        "id": number,
        "seek": round(final.start * 100),  # in frames of Whisper's
        "start": final.start,
        "end": final.end,
        "text": final.text,
        "tokens": [],  # ours are told to nobody
        "temperature": 0.0,  # it is always the likeliest that is taken
        "avg_logprob": round(math.log(max(final.confidence, 1e-6)), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,  # a segment without speech is not told
    }


def _usage(duration_s: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(duration_s)}


class _Stream(StreamingResponse):
    """Server-sent events; what they come from is closed with them."""

    def __init__(self, events: AsyncGenerator[bytes], source: AsyncExitStack):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not as Starlette does, which cancels again and again what has to be closed when the client
        # leaves. The events end then by themselves.
        head = {"status": self.status_code, "headers": self.raw_headers}
        try:
            await send({"type": "http.response.start", **head})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._events.aclose()
            await self._source.aclose()


async def _events(spoken: AsyncGenerator[Spoken], config: SessionConfig) -> AsyncGenerator[bytes]:
    finals, english = list[Final](), config.task == "translate"
    try:
        async for message in spoken:
            if isinstance(message, Final):
                spaced = english or message.language not in SPACELESS
                space = " " if finals and spaced else ""
                finals.append(message)
                yield _event({"type": "transcript.text.delta", "delta": space + message.text})
            elif isinstance(message, SessionEnd):
                said = Transcript(finals, message.total_duration, config)
                usage = _usage(said.duration_s)
                yield _event({"type": "transcript.text.done", "text": said.text, "usage": usage})
    except Refused as refused:
        yield _event({"type": "error", **_about(refused)})
    except Disconnected:
        pass


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"


def _text(text: str) -> Response:
    return Response(text, media_type="text/plain; charset=utf-8")


def _json(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(_encode(body), status, headers, media_type="application/json")


def _error(refused: Refused) -> Response:
    return _json(_about(refused), refused.status, refused.headers)


def _about(refused: Refused) -> dict[str, Any]:
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    code = {"unauthorized": "invalid_api_key", "rate_limit": "rate_limit_exceeded"}
    return {
        "error": {
            "message": str(refused),
            "type": "rate_limit_error" if refused.status == 429 else kind,
            "param": refused.param,
            "code": code.get(refused.code, refused.code),
        }
    }
