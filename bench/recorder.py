"""
A worker that also writes down what it asks of the models: the bench starts it in a worker's place.

    python bench/recorder.py OUT      otherwise as `dalston worker`
"""

import atexit
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asked import Asked

from dalston.cli import main as cli
from dalston.orchestrator.inference import member
from dalston.orchestrator.inference.triton_client import SequenceLost, SpeechAnswer, Triton
from dalston.orchestrator.transcription.model_requests import SpeechRequest, TranscriptRequest

ASKED = Asked([], [])


class RecordingTriton(Triton):
    def request_speech(
        self,
        request: SpeechRequest,
        on_answer: Callable[[SpeechAnswer], None],
        on_lost: Callable[[SequenceLost], None] = lambda _: None,
    ) -> None:
        ASKED.speech.append((time.monotonic(), request))
        super().request_speech(request, on_answer, on_lost)

    async def _whisper(
        self,
        request: TranscriptRequest,
        deadline_s: float,
        full_window: bool = False,
        over: Callable[[], None] = lambda: None,
    ) -> Any:
        ASKED.transcripts.append((time.monotonic(), request, full_window))
        return await super()._whisper(request, deadline_s, full_window, over)


def main() -> int:
    out = Path(sys.argv[1])
    atexit.register(lambda: out.write_bytes(pickle.dumps(ASKED)))
    member.Triton = RecordingTriton
    sys.argv[1:] = ["worker"]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
