"""
Log lines of gateway and worker: text for people, or one JSON object a line for machines. Either
says which session and request a line is about.
"""

import asyncio
import json
import logging
import re
from datetime import UTC, datetime
from typing import Literal

from dalston.orchestrator.process.request_ids import request_id, session_id

Format = Literal["text", "json"]

# Libraries that would tell the URLs, headers and frames of connections, keys and words included,
# below this level.
QUIET = {"uvicorn.error": logging.WARNING, "websockets": logging.INFO, "picows": logging.WARNING}
# API keys and tokens (gateway/access/), wherever they come from: an exception's text, a library's
# URL.
_KEY = re.compile(r"\b(d[kt]_)[0-9a-f]{4,}[\w.-]*")


def _in_order(record: logging.LogRecord) -> bool:
    """uvicorn tells as crashes what happens every day: a client's text that is no UTF-8, and work
    that does not end in the time it has on the way out, of which it tells the number besides."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeDecodeError) and record.getMessage().startswith("Invalid UTF-8"):
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return not isinstance(error, asyncio.CancelledError)


def _ours(record: logging.LogRecord) -> bool:
    """picows tells as errors of ours what a client does wrong, which is told to the client."""
    return "WSProtocolError" not in record.getMessage() and "parser error" not in record.msg


def _known(record: logging.LogRecord) -> dict[str, str]:
    """What the line is about: what its context says, or `extra` where that is another's."""
    session = getattr(record, "session_id", session_id.get())
    names = {"session_id": session, "request_id": request_id.get()}
    return {name: id for name, id in names.items() if id}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        ids = [id for id in _known(record).values() if id not in record.message]
        return f"{line} [{' '.join(ids)}]" if ids else line

    def format(self, record: logging.LogRecord) -> str:
        return _KEY.sub(r"\1…", super().format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_known(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _KEY.sub(r"\1…", json.dumps(fields, ensure_ascii=False))


def setup(level: str, format: Format) -> None:
    """To be called once, by the process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if format == "json" else _Text())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("uvicorn.error").addFilter(_in_order)
    logging.getLogger("picows").addFilter(_ours)
    for name, lowest in QUIET.items():
        logging.getLogger(name).setLevel(max(lowest, logging.getLogger().level))
