"""
The `dalston` command. Each subcommand imports what it needs when it runs, so that `--help` works
wherever the package is installed, whichever extras are.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dalston.cli import options

if TYPE_CHECKING:  # it needs what not every role installs
    from dalston.cli.models import Choice


def _missing(extra: str, error: ModuleNotFoundError) -> int:
    print(f"{error}: pip install 'dalston[{extra}]'", file=sys.stderr)
    return 1


def _choice(args: argparse.Namespace) -> "Choice":
    """What the options of a stack ask for."""
    from dalston.cli.models import Choice

    return Choice(args.profile, args.checkpoint, args.silero, args.source, args.end_of_turn)


def _up(args: argparse.Namespace) -> int:
    try:
        from dalston.cli import up
    except ModuleNotFoundError as error:
        return _missing("local", error)
    choice = _choice(args)
    return up.main(choice, args.data_dir, args.host, args.port, args.workers, args.tritons)


def _demo(args: argparse.Namespace) -> int:
    try:
        from dalston.cli import demo
    except ModuleNotFoundError as error:
        return _missing("local", error)
    choice = _choice(args)
    return demo.main(choice, args.data_dir, args.file)


def _stream(args: argparse.Namespace) -> int:
    try:
        from dalston.cli import stream
    except ModuleNotFoundError as error:
        return _missing("client", error)
    parameters = {"language": args.language, "model": args.model, "word_timestamps": args.words}
    parameters |= {"eager": args.eager, "endpointing": args.endpointing}
    for flag in options.STREAM_OPTIONS:
        name = flag.removeprefix("--").replace("-", "_")
        if value := getattr(args, name):
            parameters[name] = value
    try:
        if key := args.api_key or (args.api_key_file and stream.key_in(args.api_key_file)):
            parameters["api_key"] = key
    except stream.SourceError as error:
        print(error, file=sys.stderr)
        return 1
    raw = stream.Format(args.encoding, args.sample_rate, args.channels)
    urls = args.url or ["ws://127.0.0.1:8000"]
    return stream.main(args.source, urls, parameters, raw, args.json, args.fast)


def _models_build(args: argparse.Namespace) -> int:
    try:
        from dalston.cli import models
        from dalston.cli.data import data_folder
    except ModuleNotFoundError as error:
        return _missing("triton", error)
    out = args.out or data_folder(args.data_dir) / "model_repository"
    choice = _choice(args)
    return models.main(choice, out)


def _models_list(_: argparse.Namespace) -> int:
    try:
        from dalston.cli import models
    except ModuleNotFoundError as error:
        return _missing("triton", error)
    return models.show()


def _models_adapt(args: argparse.Namespace) -> int:
    try:
        from dalston.cli import models
    except ModuleNotFoundError as error:
        return _missing("triton", error)
    return models.adapt(
        models.Adaptation(
            args.checkpoint, args.audio, args.out, args.proof, args.crops, args.processes
        )
    )


def _keys(args: argparse.Namespace) -> int:
    try:
        from dalston.cli import keys
    except ModuleNotFoundError as error:
        return _missing("gateway", error)
    place = keys.Place(args.file, args.redis_url)
    match args.command:
        case "keys add":
            return keys.add(place, args.name, args.sessions, args.scopes, args.expires)
        case "keys list":
            return keys.show(place)
        case "keys revoke":
            return keys.revoke(place, args.name, args.end_sessions)
        case "keys token":
            return keys.token(place, args.name, args.seconds, args.scopes)
        case _:
            return keys.rotate(place, args.at_once)


def _gateway(args: argparse.Namespace) -> int:
    try:
        from dalston.gateway import server
        from dalston.gateway.settings import GatewaySettings
        from dalston.orchestrator.process.environment import SettingsError, from_environment
    except ModuleNotFoundError as error:
        return _missing("gateway", error)
    if args.wyoming:
        os.environ["DALSTON_WYOMING_PORT"] = args.wyoming
    try:
        settings = from_environment(GatewaySettings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return server.main(settings)


def _worker(_: argparse.Namespace) -> int:
    try:
        from dalston.orchestrator.process.environment import SettingsError, from_environment
        from dalston.orchestrator.worker import worker
        from dalston.orchestrator.worker.settings import WorkerSettings
    except ModuleNotFoundError as error:
        return _missing("worker", error)
    try:
        settings = from_environment(WorkerSettings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return worker.main(settings)


def _triton(args: argparse.Namespace) -> int:
    try:
        from dalston.triton import probe, server
        from dalston.triton.contract import TOKEN_VARIABLE
    except ModuleNotFoundError as error:
        return _missing("triton", error)
    ports = server.Ports(args.grpc_port, args.http_port, args.metrics_port)
    if args.probe:
        # Its supervisor asks who answered nobody; asking as well would keep models from idling.
        lately_s = 2 * server.PROBE_EVERY_S if args.unload_after else 0.0
        return probe.main(f"127.0.0.1:{ports.grpc}", lately_s)
    if args.repository is None:
        print("--repository is needed", file=sys.stderr)
        return 2
    traces = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    token = os.environ.get(TOKEN_VARIABLE)
    return server.main(
        args.repository, args.run_dir, ports, args.host, traces, args.unload_after, token
    )


_COMMANDS = {
    "up": _up,
    "demo": _demo,
    "stream": _stream,
    "models build": _models_build,
    "models list": _models_list,
    "models adapt": _models_adapt,
    "keys add": _keys,
    "keys list": _keys,
    "keys revoke": _keys,
    "keys token": _keys,
    "keys rotate": _keys,
    "gateway": _gateway,
    "worker": _worker,
    "triton": _triton,
}


def read_secrets() -> None:
    """Variables from files that are named as they are, in the folders of DALSTON_SECRETS: as Docker
    and Kubernetes hand out secrets. What is set already stays."""
    for folder in filter(None, os.environ.get("DALSTON_SECRETS", "").split(os.pathsep)):
        for file in Path(folder).iterdir():
            if file.name.isupper() and file.is_file():
                os.environ.setdefault(file.name, file.read_text("utf-8").strip())


def main() -> int:
    try:
        read_secrets()
    except (OSError, UnicodeError) as error:
        print(f"DALSTON_SECRETS: {error}", file=sys.stderr)
        return 2
    args = options.parser().parse_args()
    try:
        return _COMMANDS[args.command](args)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
