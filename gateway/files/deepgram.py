"""
Deepgram's REST for recorded audio, as its SDKs and LiveKit use it: `POST /v1/listen`.

Settings are in the query, and the body is the file. What has an effect, and what has none, is in
docs/compatibility.md.
Source: https://developers.deepgram.com/reference/speech-to-text/listen-pre-recorded
"""

import asyncio
import hashlib
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, BinaryIO

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from dalston.gateway.containers import Raw
from dalston.gateway.files.refused import Refused
from dalston.gateway.files.transcriber import Here, Transcriber
from dalston.gateway.files.transcript import Transcript, whole
from dalston.gateway.files.upload import drop_rest
from dalston.gateway.protocols.deepgram import bare, denied, hidden_by, wanted_terms, word_told
from dalston.gateway.protocols.protocol import Opening
from dalston.gateway.protocols.vendors import flag, number, one_of, settings, variant
from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.process.request_ids import request_id
from dalston.orchestrator.protocol.messages import Final, SessionConfig, Word
from dalston.orchestrator.protocol.parameters import ParameterError

_CODECS = {"linear16": "s16le", "linear32": "f32le", "mulaw": "mulaw", "alaw": "alaw"}
_NOT_FETCHED = "audio is not fetched from a URL by this server: send the file itself as the body"

routes = APIRouter()


@routes.post("/v1/listen")
async def listen(request: Request, here: Here) -> Response:
    try:
        opening = Opening(request.query_params.multi_items(), request.headers)
        config, raw = _asked(opening)
        async with here.upload(request, form=False) as upload:
            if request.headers.get("content-type", "").startswith("application/json"):
                raise Refused("invalid_parameter", _NOT_FETCHED)
            digest = await asyncio.to_thread(_sha256, upload.file)
            said = await _heard(request, here, upload.file, config, raw)
        return Response(
            msgspec.json.encode(_answer(opening, said, digest)), media_type="application/json"
        )
    except Refused as refused:
        await drop_rest(request)
        body, headers = denied(refused.code, str(refused), request_id.get())
        return Response(body, refused.status, refused.headers | headers, "application/json")
    except (ClientDisconnect, Disconnected):
        return Response(status_code=499)  # to nobody


async def _heard(
    request: Request, here: Transcriber, file: BinaryIO, config: SessionConfig, raw: Raw | None
) -> Transcript:
    async with aclosing(here.transcribe(request, file, config, raw)) as spoken:
        return await whole(spoken)


def _asked(opening: Opening) -> tuple[SessionConfig, Raw | None]:
    """Raises Refused."""
    one = opening.one
    try:
        if one("callback"):
            raise ParameterError("callback", "", "callback is not possible here")
        for name in ("utterances", *_FORMATTED):
            flag(name, one(name))
        multilingual, detects = _multilingual(opening), _detects(opening)
        config = settings(
            {
                "model": variant(one("model")),
                "language": "auto" if detects else one("language", "en"),
                "language_detection": "utterance" if multilingual else None,
                "word_timestamps": True,
                "redact": hidden_by(opening),
            },
            wanted_terms(opening),
        )
        return config, _raw(opening)
    except ParameterError as error:
        raise Refused(error.code, str(error), error.name) from None


_FORMATTED = ("punctuate", "smart_format", "dictation", "paragraphs")


def _multilingual(opening: Opening) -> bool:
    return opening.one("language") == "multi"


def _detects(opening: Opening) -> bool:
    """Raises ParameterError."""
    name = "detect_language"
    return _multilingual(opening) or flag(name, opening.one(name))


def _raw(opening: Opening) -> Raw | None:
    """A body without a container, which Deepgram is told of by `encoding` and `sample_rate`.
    Raises ParameterError."""
    encoding, rate = opening.one("encoding"), opening.one("sample_rate")
    if not (encoding and rate):
        return None
    codec = one_of("encoding", encoding, _CODECS)
    channels = int(number("channels", opening.one("channels") or "1", 1, 2))
    return Raw(codec, int(number("sample_rate", rate, 8_000, 48_000)), channels)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    file.seek(0)
    return digest.hexdigest()


def _answer(opening: Opening, said: Transcript, digest: str) -> dict[str, Any]:
    formatted = any(flag(name, opening.one(name)) for name in _FORMATTED)
    about, model = said.config.model_id, opening.one("model") or said.config.model
    alternative = _alternative(said.text, said.confidence, said.words, formatted)
    channel: dict[str, Any] = {"alternatives": [alternative]}
    if _multilingual(opening):
        alternative["languages"] = list(dict.fromkeys(final.language for final in said.finals))
    elif _detects(opening):
        channel["detected_language"] = said.language
        channel["language_confidence"] = round(said.language_share, 4)
    results: dict[str, Any] = {"channels": [channel]}
    if flag("utterances", opening.one("utterances")):
        results["utterances"] = [_utterance(final, formatted) for final in said.finals]
    return {
        "metadata": {
            "transaction_key": "deprecated",
            "request_id": request_id.get(),
            "sha256": digest,
            "created": datetime.fromtimestamp(time.time(), UTC).isoformat(),
            "duration": said.duration_s,
            "channels": 1,
            "models": [about],
            "model_info": {about: {"name": model, "version": "", "arch": "whisper"}},
        },
        "results": results,
    }


def _alternative(
    text: str, confidence: float, words: list[Word], formatted: bool
) -> dict[str, Any]:
    return {
        "transcript": text if formatted else bare(text),
        "confidence": confidence,
        "words": [word_told(word, formatted) for word in words],
    }


def _utterance(final: Final, formatted: bool) -> dict[str, Any]:
    words = list(final.words or ())
    return {
        "id": final.segment_id,
        "start": final.start,
        "end": final.end,
        "channel": 0,
        **_alternative(final.text, final.confidence, words, formatted),
    }
