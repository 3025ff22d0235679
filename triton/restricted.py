"""
Triton's control APIs: who may use them, and how they are kept from everybody else.

Whoever may load a model runs code of their own as Triton's user, and a web page can send such a
request: it needs no cookie and no preflight. So what controls Triton wants a token, in a header.
tritonserver takes it on its command line only, which every user of the machine can read; there it
is overwritten as soon as tritonserver has read it. What nobody uses over HTTP wants a header that
nobody can send.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from dalston.triton.contract import TOKEN_HEADER

logger = logging.getLogger(__name__)

# Supervisor and workers use these: models are loaded, unloaded and listed, and a region of shared
# memory is the mark of one that is asleep (sleepers.py).
_CONTROL = "model-repository,shared-memory"
_NEVER_USED = "trace,logging"
# No header has a line break in its name.
_UNSENDABLE = "\n=\n"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,}")


def is_token(text: str) -> bool:
    """Whether tritonserver understands it in an option, and nobody guesses it."""
    return _TOKEN.fullmatch(text) is not None


def options(token: str) -> list[str]:
    """Of tritonserver."""
    return [
        f"--http-restricted-api={_CONTROL}:{TOKEN_HEADER}={token}",
        f"--http-restricted-api={_NEVER_USED}:{_UNSENDABLE}",
        f"--grpc-restricted-protocol={_CONTROL},{_NEVER_USED}:{TOKEN_HEADER}={token}",
    ]


class _WithToken(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the token to every request."""

    def __init__(self, token: str):
        self._header = (f"triton-grpc-protocol-{TOKEN_HEADER}", token)  # Triton's prefix

    async def intercept_unary_unary(
        self,
        continuation: Callable[..., Any],
        client_call_details: Any,
        request: Any,
    ) -> Any:
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), self._header)
        return await continuation(client_call_details._replace(metadata=metadata), request)


def channel(address: str, token: str, options: Any = None) -> grpc.aio.Channel:
    """A channel to a Triton whose token this is."""
    return grpc.aio.insecure_channel(address, options=options, interceptors=[_WithToken(token)])


def hide(pid: int, token: str) -> None:
    """Overwrite the token in the command line of a process, which has to have read it.

    We may write there, for the process is our child.
    """
    secret = token.encode()
    try:
        # After the name, which may hold spaces: the fields from the third on. See proc(5).
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        began = int(stat[48 - 3])  # arg_start
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            at = arguments.find(secret)
            while at >= 0:
                memory.seek(began + at)
                memory.write(b"x" * len(secret))
                at = arguments.find(secret, at + 1)
    except (OSError, ValueError) as error:
        logger.warning("the users of this machine can read Triton's token in `ps`: %s", error)
