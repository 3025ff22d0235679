"""
ElevenLabs' REST for recorded audio, as its SDKs, LiveKit and Pipecat use it:
`POST /v1/speech-to-text`, and the transcripts that are kept of it.

What has an effect, and what has none, is in docs/compatibility.md.
Source: https://elevenlabs.io/docs/api-reference/speech-to-text/convert
"""

import logging
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect

from dalston.gateway.containers import Raw
from dalston.gateway.files.kept import Transcripts, new_id
from dalston.gateway.files.refused import Refused
from dalston.gateway.files.subtitles import srt
from dalston.gateway.files.transcriber import Here
from dalston.gateway.files.transcript import Transcript, whole
from dalston.gateway.files.upload import Upload, drop_rest
from dalston.gateway.protocols.elevenlabs import items
from dalston.gateway.protocols.vendors import alpha3, flag, language, one_of, settings, variant
from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.protocol.messages import SessionConfig
from dalston.orchestrator.protocol.parameters import ParameterError

logger = logging.getLogger(__name__)

_GRANULARITIES = {"none": False, "word": True}
_FORMATS = {"other": None, "pcm_s16le_16": Raw("s16le", 16_000)}
# Unlike what has no effect, these would change what is answered.
_NOT_HERE = ("cloud_storage_url", "entity_redaction", "source_url", "use_multi_channel", "webhook")
_UNAVAILABLE = "the transcripts cannot be reached. Try again later."

routes = APIRouter()


class _Additional(msgspec.Struct):
    """A format that the transcript is wanted in as well."""

    format: Literal["srt", "txt"]


@routes.post("/v1/speech-to-text")
async def convert(request: Request, here: Here) -> Response:
    try:
        async with here.upload(request, form=True) as upload:
            config, raw, more = _asked(upload)
            async with aclosing(here.transcribe(request, upload.file, config, raw)) as spoken:
                said = await whole(spoken)
        body = _answer(said, more)
        kept: Transcripts = request.app.state.gateway.transcripts
        if kept.are_kept:
            body["transcription_id"] = new_id()
        told = msgspec.json.encode(body)
        if kept.are_kept:
            holder = await here.holder(request, "files")
            try:
                await kept.keep(body["transcription_id"], told, holder.key_id)
            except RedisError as error:  # it is told all the same
                logger.warning("Redis: %s: a transcript is not kept", error)
        return _json(told)
    except Refused as refused:
        await drop_rest(request)
        return _error(refused)
    except (ClientDisconnect, Disconnected):
        return Response(status_code=499)  # to nobody


@routes.get("/v1/speech-to-text/transcripts/{id}")
async def transcript(id: str, request: Request, here: Here) -> Response:
    kept: Transcripts = request.app.state.gateway.transcripts
    try:
        holder = await here.holder(request, "files")
        found = await kept.find(id, holder.key_id)
        if found is None:
            raise Refused("not_found", f"there is no transcript {id[:100]!r}, or no longer")
        return _json(found)
    except Refused as refused:
        return _error(refused)
    except RedisError:
        return _error(Refused("no_capacity", _UNAVAILABLE))


@routes.delete("/v1/speech-to-text/transcripts/{id}")
async def forget(id: str, request: Request, here: Here) -> Response:
    kept: Transcripts = request.app.state.gateway.transcripts
    try:
        holder = await here.holder(request, "files")
        if not await kept.forget(id, holder.key_id):
            raise Refused("not_found", f"there is no transcript {id[:100]!r}, or no longer")
        return _json(b'{"message":"Delete completed successfully."}')
    except Refused as refused:
        return _error(refused)
    except RedisError:
        return _error(Refused("no_capacity", _UNAVAILABLE))


def _asked(upload: Upload) -> tuple[SessionConfig, Raw | None, list[_Additional]]:
    """Raises Refused."""
    try:
        for name in _NOT_HERE:
            if _said(upload, name) and _said(upload, name).lower() != "false":
                raise ParameterError(name, "", f"{name} is not possible here")
        if not _said(upload, "model_id"):
            raise ParameterError("model_id", "", "model_id is needed, such as scribe_v2")
        if not upload.has_file:
            raise ParameterError("file", "", "there is no file in the form")
        for name in ("diarize", "tag_audio_events"):
            flag(name, _said(upload, name))
        spoken = _said(upload, "language_code")
        timed = _said(upload, "timestamps_granularity") or "word"
        config = settings(
            {
                "model": variant(_said(upload, "model_id")),
                "language": language(spoken) if spoken else "auto",
                "word_timestamps": one_of("timestamps_granularity", timed, _GRANULARITIES),
            },
            upload.all("keyterms"),
        )
        raw = one_of("file_format", _said(upload, "file_format") or "other", _FORMATS)
        return config, raw, _additional(_said(upload, "additional_formats"))
    except ParameterError as error:
        name = {"keywords": "keyterms", "language": "language_code"}.get(error.name, error.name)
        raise Refused(error.code, str(error), name) from None


def _said(upload: Upload, name: str) -> str:
    """Their SDK says `null` for what is not set."""
    value = upload.one(name)
    return "" if value == "null" else value


def _additional(text: str) -> list[_Additional]:
    """Raises ParameterError."""
    if not text:
        return []
    try:
        return msgspec.json.decode(text, type=list[_Additional])
    except msgspec.MsgspecError:
        name = "additional_formats"
        raise ParameterError(name, "", f"{name}: a list of srt and txt is possible") from None


def _answer(said: Transcript, more: list[_Additional]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "language_code": alpha3(said.language),
        "language_probability": round(said.language_share, 4),
        "text": said.text,
        "words": list(items(said.text, said.finals)),
        "audio_duration_secs": said.duration_s,
    }
    if more:
        body["additional_formats"] = [_in_format(said, one.format) for one in more]
    return body


def _in_format(said: Transcript, name: Literal["srt", "txt"]) -> dict[str, Any]:
    return {
        "requested_format": name,
        "file_extension": name,
        "content_type": "application/x-subrip" if name == "srt" else "text/plain",
        "is_base64_encoded": False,
        "content": srt(said.finals) if name == "srt" else said.text,
    }


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _error(refused: Refused) -> Response:
    status = {"unauthorized": "invalid_api_key", "rate_limit": "too_many_concurrent_requests"}
    detail: dict[str, Any] = {
        "status": status.get(refused.code, refused.code),
        "message": str(refused),
    }
    body = msgspec.json.encode(
        {"detail": detail | ({"param": refused.param} if refused.param else {})}
    )
    return Response(body, refused.status, refused.headers, "application/json")
