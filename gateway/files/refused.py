"""
Why a request with recorded audio is not served: what each service's answer is made of.
"""

from collections.abc import Mapping
from typing import Literal

from dalston.gateway.protocols.vendors import STATUS
from dalston.orchestrator.protocol.messages import RETRY_AFTER_S, ErrorCode

Code = (
    ErrorCode
    | Literal["audio_too_long", "disk_full", "file_too_large", "model_not_found", "not_found"]
)
_STATUS: Mapping[Code, int] = {
    **STATUS,
    "audio_too_long": 413,
    "disk_full": 507,
    "file_too_large": 413,
    "model_not_found": 404,
    "not_found": 404,
}


class Refused(Exception):
    """Says why in a sentence. param: what of the request is wrong."""

    def __init__(self, code: Code, sentence: str, param: str | None = None):
        super().__init__(sentence)
        self.code: Code = code
        self.status, self.param = _STATUS[code], param

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, if that is all there is to do."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
