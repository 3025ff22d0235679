"""
What clients speak: a file for each protocol, and here the path where each is spoken.
"""

from collections.abc import Callable, Mapping

from dalston.gateway.protocols.deepgram import Deepgram
from dalston.gateway.protocols.deepgram_flux import Flux
from dalston.gateway.protocols.elevenlabs import ElevenLabs
from dalston.gateway.protocols.native import Native
from dalston.gateway.protocols.openai_realtime import OpenAIRealtime
from dalston.gateway.protocols.protocol import ClientProtocol, Opening
from dalston.gateway.protocols.recordings import Recordings
from dalston.gateway.protocols.twilio import Twilio
from dalston.gateway.protocols.vapi import Vapi
from dalston.gateway.protocols.vosk import Vosk

PROTOCOLS: Mapping[str, Callable[[Opening], ClientProtocol]] = {
    "/v1/audio/transcriptions/stream": Native,
    "/v1/listen": Deepgram,
    "/v1/realtime": OpenAIRealtime,
    "/v1/speech-to-text/realtime": ElevenLabs,
    "/v2/listen": Flux,
    "/twilio": Twilio,
    "/vapi": Vapi,
    "/vosk": Vosk,
    "/ws/transcribe": Recordings,
}
