"""
docker-compose.yml and the Dockerfiles, as far as they can be held to their word without Docker.

What the schema cannot say is checked here: that services find what they need, and that what is
written in the file is what our programs read.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis.exceptions import RedisError
from support.compose_file import COMPOSE, is_valid, resolved
from support.redis_process import RedisProcess

from dalston.cli import options
from dalston.cli.main import read_secrets
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.process.environment import SettingsError, from_environment
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.triton import models
from dalston.triton.contract import TOKEN_VARIABLE

ROOT = Path(__file__).parents[1]

Service = dict[str, Any]


def parse(text: str) -> dict[str, Service]:
    return yaml.safe_load(text)["services"]


SERVICES = parse(COMPOSE.read_text("utf-8"))
WORKERS = [name for name in SERVICES if name.startswith("realtime-whisper-")]
# What `dalston models build` reads: triton/sources.py, cli/options.py.
FETCHING = {"HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "DALSTON_MODEL_SOURCE"}


def needs(name: str, services: dict[str, Service] = SERVICES) -> set[str]:
    """A service and all that Compose starts before it."""
    found = {name}
    for dependency in services[name].get("depends_on", {}):
        found |= needs(dependency, services)
    return found


# The file.


def test_it_is_a_compose_file() -> None:
    assert is_valid(COMPOSE)


def test_the_schema_refuses_what_is_misspelt(tmp_path: Path) -> None:
    path = tmp_path / "docker-compose.yml"
    path.write_text(COMPOSE.read_text("utf-8").replace("healthcheck:", "healthchek:"))
    assert not is_valid(path)


# 000-16, 000-46, K-07, C-10
def test_starting_realtime_whisper_1_starts_all_it_needs() -> None:
    expected = {"realtime-whisper-1", "redis", "secrets", "models", "triton", "gateway"}
    assert needs("realtime-whisper-1") == expected
    assert resolved(SERVICES["gateway"]["ports"][0]) == "127.0.0.1:8000:8000"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_needs_is_in_all_its_profiles(name: str) -> None:
    # Otherwise Compose refuses to start it: naming it switches on its profiles, not theirs.
    profiles = set(SERVICES[name]["profiles"])
    for dependency in needs(name):
        assert profiles <= set(SERVICES[dependency]["profiles"]), dependency


# 001-54, 001-57
def test_only_triton_asks_for_a_gpu_and_only_in_the_gpu_profile() -> None:
    reserving = {name for name, service in SERVICES.items() if "deploy" in service}
    assert reserving == {"triton"}
    assert SERVICES["triton"]["profiles"] == ["gpu"]
    assert SERVICES["triton"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    ]


# K-08
@pytest.mark.parametrize(
    ("profile", "worker", "triton"),
    [
        ("gpu", "realtime-whisper-1", "triton"),
        ("gpu", "realtime-whisper-2", "triton"),
        ("cpu", "realtime-whisper-cpu-1", "triton-cpu"),
    ],
)
def test_each_profile_is_a_whole_stack(profile: str, worker: str, triton: str) -> None:
    assert {worker, triton, "redis", "gateway"} <= needs(worker)
    assert SERVICES[worker]["environment"]["TRITON_URLS"] == f"{triton}:8000"
    (job,) = SERVICES[triton]["depends_on"].keys() - {"secrets"}
    assert SERVICES[triton]["depends_on"][job] == {"condition": "service_completed_successfully"}
    build, serve = (options.parser().parse_args(command(name)[1:]) for name in (job, triton))
    assert build.profile == profile
    assert serve.repository == build.data_dir / "model_repository"
    assert SERVICES[triton]["healthcheck"]["test"] == ["CMD", "dalston", "triton", "--probe"]


# 001-51, 001-52, 001-53, 001-55, 001-56, 001-58
def test_workers_are_what_deployments_expect() -> None:
    for number in (1, 2):
        name = f"realtime-whisper-{number}"
        worker = SERVICES[name]
        assert worker["ports"] == [f"127.0.0.1:{9000 + number}:9000"]
        assert (
            worker["environment"].items()
            >= {
                "REDIS_URL": "redis://redis:6379",
                "WORKER_ID": name,
                "WORKER_PORT": 9000,
                "MAX_SESSIONS": 4,
            }.items()
        )
        assert {mount.removesuffix(":ro") for mount in worker["volumes"]} >= {
            "dalston-models:/models",
            "dalston-sessions:/data/sessions",
        }
        assert worker["restart"] == "unless-stopped"
        assert worker["healthcheck"] == {
            "test": ["CMD", "curl", "-f", "http://localhost:9000/health"],
            "interval": "30s",
            "timeout": "10s",
            "retries": 3,
        }


def test_nothing_is_published_to_other_machines() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"gateway", *WORKERS}
    for ports in published.values():
        assert all(resolved(port).startswith("127.0.0.1:") for port in ports)


def test_a_gateway_that_is_published_to_others_knows_it_and_wants_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway, everywhere = SERVICES["gateway"], {"DALSTON_PUBLISHED": "0.0.0.0"}
    assert resolved(gateway["ports"][0], **everywhere) == "0.0.0.0:8000:8000"
    for name, value in gateway["environment"].items():
        if value is not None:
            monkeypatch.setenv(name, resolved(str(value), **everywhere))
    with pytest.raises(SettingsError, match=r"whoever reaches 0\.0\.0\.0 would be let in"):
        from_environment(GatewaySettings)
    # What Compose passes on from the user's environment:
    monkeypatch.setenv("DALSTON_ALLOW_NO_KEYS", "1")
    assert from_environment(GatewaySettings).reached_at == "0.0.0.0"


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_do_what_it_need_not(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    # It is the image's user that is not root: see below. Others' images have to be told.
    assert "build" in service or service["user"] == "1000:1000"
    # What a service was not made to write.
    written = {mount for mount in service.get("volumes", ()) if not mount.endswith(":ro")}
    of_jobs = {"dalston-models:/models", "dalston-secrets:/secrets", "dalston-triton-token:/token"}
    assert not written & of_jobs or service["restart"] == "no"


def test_redis_and_triton_reach_nothing_outside_and_are_reached_by_nobody_there() -> None:
    networks = yaml.safe_load(COMPOSE.read_text("utf-8"))["networks"]
    assert [name for name, of in networks.items() if of and of.get("internal")] == ["back"]
    for name in ("redis", "triton", "triton-cpu"):
        assert SERVICES[name]["networks"] == ["back"]
    assert SERVICES["secrets"]["network_mode"] == "none"


# What the services show each other.

SECRETS = {"/secrets": "secrets", "/token": "token"}  # folders in the containers, and here


def make_secrets(folder: Path) -> None:
    """Do what the service does, in this folder."""
    (*shell, script) = SERVICES["secrets"]["command"]
    for mount, name in SECRETS.items():
        (folder / name).mkdir(exist_ok=True)
        script = script.replace(f"{mount}/", f"{folder / name}/")
    subprocess.run([*shell, script.replace("$$", "$")], check=True)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.glob("*/*")}


def test_secrets_are_made_once_for_their_reader_alone(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    made = contents(tmp_path)
    assert made.keys() == {
        "REDIS_PASSWORD",
        "DALSTON_WORKER_SECRET",
        "DALSTON_TRITON_TOKEN",
        "redis.conf",
    }
    secrets = [value for name, value in made.items() if name.isupper()]
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in secrets)
    assert len(set(secrets)) == 3
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("*/*")} == {0o600}
    make_secrets(tmp_path)
    assert contents(tmp_path) == made


def test_each_service_sees_the_secrets_it_needs() -> None:
    shown = {
        name: {mount.split(":")[1] for mount in service.get("volumes", ())} & SECRETS.keys()
        for name, service in SERVICES.items()
    }
    assert shown["redis"] == shown["gateway"] == {"/secrets"}
    assert shown["triton"] == shown["triton-cpu"] == {"/token"}
    assert all(shown[name] == SECRETS.keys() for name in WORKERS)
    assert shown["models"] == shown["models-cpu"] == set()
    for name in ("gateway", "triton", *WORKERS):
        folders = SERVICES[name]["environment"]["DALSTON_SECRETS"].split(":")
        assert set(folders) == shown[name]


async def test_redis_wants_the_password_that_the_others_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_secrets(tmp_path)
    (program, conf, *options) = SERVICES["redis"]["command"]
    assert (program, conf) == ("redis-server", "/secrets/redis.conf")
    there = RedisProcess(tmp_path / "data", (str(tmp_path / "secrets/redis.conf"), *options))
    there.start()
    try:
        monkeypatch.setenv("REDIS_URL", there.url)
        async with redis_client(from_environment(GatewaySettings).redis_url) as client:
            with pytest.raises(RedisError, match="authenticated"):
                await client.ping()
        monkeypatch.setattr(os, "environ", os.environ.copy())
        os.environ["DALSTON_SECRETS"] = str(tmp_path / "secrets")
        read_secrets()
        async with redis_client(from_environment(GatewaySettings).redis_url) as client:
            assert await client.ping()
    finally:
        there.kill()


def test_gateway_and_workers_share_the_secret_of_the_users_environment() -> None:
    for name in ("gateway", *WORKERS):
        environment = SERVICES[name]["environment"]
        assert environment["DALSTON_WORKER_SECRET"] is None, name  # as Compose says "passed on"
    assert SERVICES["gateway"]["environment"]["DALSTON_API_KEYS"] is None


def test_what_runs_comes_back_and_tells_its_health() -> None:
    for name, service in SERVICES.items():
        if name.startswith("models") or name == "secrets":
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name


def test_every_volume_is_declared_and_used() -> None:
    declared = yaml.safe_load(COMPOSE.read_text("utf-8"))["volumes"]
    used = {mount.split(":")[0] for s in SERVICES.values() for mount in s.get("volumes", ())}
    assert used == set(declared)


# What our programs make of it.


def command(name: str) -> list[str]:
    """What a service runs: its own command, or that of its image."""
    service = SERVICES[name]
    if "command" in service:
        return service["command"]
    text = (ROOT / service["build"]["dockerfile"]).read_text("utf-8")
    return json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[-1])


@pytest.mark.parametrize("name", SERVICES)
def test_every_command_is_one_of_ours(name: str) -> None:
    commands = [command(name), SERVICES[name].get("healthcheck", {}).get("test", ["CMD"])[1:]]
    ours = [words[1:] for words in commands if words[:1] == ["dalston"]]
    assert ours or name in ("redis", "secrets")
    for words in ours:
        options.parser().parse_args(words)


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_one_that_is_read(name: str) -> None:
    kinds = {"worker": WorkerSettings, "gateway": GatewaySettings}
    kind = kinds.get(command(name)[1])
    fields = kind.model_fields.values() if kind else ()
    read = {field.alias for field in fields} if kind else FETCHING
    of_triton = {"OTEL_EXPORTER_OTLP_ENDPOINT", "DALSTON_UNLOAD_AFTER_SECONDS", TOKEN_VARIABLE}
    read |= of_triton if command(name)[1] == "triton" else set()
    read |= {"DALSTON_SECRETS", "TMPDIR"}
    assert SERVICES[name].get("environment", {}).keys() <= read


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Service:
    """The service of the test's `name`, its variables set and no others."""
    service = SERVICES[request.getfixturevalue("name")]
    for variable in list(os.environ):
        monkeypatch.delenv(variable)
    for variable, value in service["environment"].items():
        if value is not None:  # taken from the user's environment
            monkeypatch.setenv(variable, resolved(str(value)))
    return service


# 001-02
@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_where_it_says(name: str, environment: Service) -> None:
    settings = from_environment(WorkerSettings)
    assert settings.worker_id == name
    assert settings.host == "0.0.0.0"
    assert settings.advertised(settings.port) == f"ws://{name}:{settings.port}"
    assert environment["ports"][0].endswith(f":{settings.port}")
    assert environment["healthcheck"]["test"][-1] == f"http://localhost:{settings.port}/health"
    assert seconds(environment["stop_grace_period"]) >= settings.drain_seconds + 7


@pytest.mark.parametrize("name", ["gateway"])
def test_the_gateway_is_where_it_says(name: str, environment: Service) -> None:
    settings = from_environment(GatewaySettings)
    assert settings.host == "0.0.0.0"
    assert environment["ports"][0].endswith(f":{settings.port}")
    probe = environment["healthcheck"]["test"][-1]
    assert probe == f"http://localhost:{settings.port}/health/live"
    assert seconds(environment["stop_grace_period"]) >= settings.drain_seconds + 7


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration.removesuffix("s"))


# The images.

IMAGES = sorted({s["build"]["dockerfile"] for s in SERVICES.values() if "build" in s})


def copied(dockerfile: str) -> list[str]:
    text = (ROOT / dockerfile).read_text("utf-8")
    lines = re.findall(r"^COPY (.*)$", text, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_an_image_is_made_of_what_exists_and_is_sent_to_the_builder(dockerfile: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignore  # everything that is not named
    sent = {line[1:] for line in ignore if line.startswith("!")}
    for source in copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert source in sent, source
    assert all((ROOT / name).exists() for name in sent)


def test_what_is_secret_or_built_is_in_no_image_and_no_commit() -> None:
    sent = {line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()}
    assert not {"!.git", "!.venv", "!build", "!keys", "!.env"} & sent
    assert {"/.env", "/keys/", "/build/"} <= set((ROOT / ".gitignore").read_text().splitlines())
    for dockerfile in IMAGES:
        text = (ROOT / dockerfile).read_text("utf-8")
        assert not re.search(r"^(ARG|ENV) .*(SECRET|TOKEN|PASSWORD|KEY)", text, re.MULTILINE)


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_no_image_runs_as_root(dockerfile: str) -> None:
    lines = (ROOT / dockerfile).read_text("utf-8").splitlines()
    # The same in all, for they share volumes.
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_no_folder_of_ours_shadows_a_package_in_an_image(dockerfile: str) -> None:
    assert re.search(r"^ENV PYTHONSAFEPATH=1 ", (ROOT / dockerfile).read_text(), re.MULTILINE)


def test_every_base_image_has_a_version() -> None:
    images = [
        *(re.search(r"^FROM (.*)$", (ROOT / d).read_text("utf-8"), re.MULTILINE) for d in IMAGES),
    ]
    names = [found[1] for found in images if found]
    names += [service["image"] for service in SERVICES.values() if "image" in service]
    assert len(names) == len(IMAGES) + 1
    for name in names:
        assert re.search(r":\d", name), name


# C-22
def test_a_python_image_is_python_and_what_its_health_check_runs() -> None:
    for dockerfile in ("gateway/Dockerfile", "orchestrator/Dockerfile"):
        text = (ROOT / dockerfile).read_text("utf-8")
        assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["python:3.12-slim-bookworm"]
        assert re.findall(r"apt-get install [- \w]*?(\w+) *\\", text) == ["curl"]


def test_tritons_image_has_what_a_repository_is_built_from() -> None:
    sources = copied("triton/Dockerfile")
    assert "model_repository" in sources
    served = [model for variants in models.profiles().values() for model in variants.values()]
    for bundled in {model.checkpoint.bundled for model in served} - {None}:
        assert f"demo/{bundled}" in sources


def installed_with(extra: str) -> set[str]:
    """The distributions that dalston[extra] brings along."""
    found, todo = set[str](), [Requirement(f"dalston[{extra}]")]
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            for text in distribution(requirement.name).requires or ():
                needed = Requirement(text)
                if needed.marker and not needed.marker.evaluate({"extra": extra}):
                    continue
                if canonicalize_name(needed.name) not in found or needed.extras:
                    found.add(canonicalize_name(needed.name))
                    todo.append(needed)
    return found


# -S: no editable installation, which would add the folders that an image lacks.
IMPORT = """
import importlib, json, sys
folder, packages, absent, modules = json.loads(sys.argv[1])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path += [folder, packages]
for module in modules:
    importlib.import_module(module)
"""


@pytest.mark.parametrize(
    ("dockerfile", "extra", "modules"),
    [
        ("gateway/Dockerfile", "gateway", ["cli.main", "cli.keys", "gateway.server"]),
        ("orchestrator/Dockerfile", "worker", ["cli.main", "orchestrator.worker.worker"]),
        (
            "triton/Dockerfile",
            "triton",
            ["cli.main", "cli.models", "triton.server", "triton.silero", "triton.whisper"],
        ),
    ],
)
def test_an_image_has_all_that_its_program_imports(
    dockerfile: str, extra: str, modules: list[str], tmp_path: Path
) -> None:
    assert re.search(rf"\.\[{extra}[\],]|\['{extra}'\]", (ROOT / dockerfile).read_text("utf-8"))
    links = tmp_path / "dalston"
    links.mkdir()
    for link in (ROOT / "src" / "dalston").iterdir():
        if link.name in copied(dockerfile):
            (links / link.name).symlink_to(ROOT / link.name)
    present = installed_with(extra)
    absent = [
        module
        for module, names in packages_distributions().items()
        if not present & {canonicalize_name(name) for name in names} and module != "dalston"
    ]
    arguments = [
        str(tmp_path),
        sysconfig.get_path("purelib"),
        absent,
        [f"dalston.{module}" for module in modules],
    ]
    program = [sys.executable, "-P", "-S", "-c", IMPORT, json.dumps(arguments)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# The documentation.


# 001-56, 001-57
def test_what_docker_md_adds_to_the_file_fits(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "docker.md").read_text("utf-8")
    added = "\n".join(re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL))
    text = COMPOSE.read_text("utf-8").replace("\nnetworks:\n", f"\n{added}\nnetworks:\n")
    path = tmp_path / "docker-compose.yml"
    path.write_text(text)
    assert is_valid(path)
    services = parse(text)
    assert services.keys() - SERVICES.keys() == {"realtime-whisper-3", "triton-2"}
    assert services["realtime-whisper-3"]["ports"] == ["127.0.0.1:9003:9000"]
    assert needs("realtime-whisper-3", services) > needs("gateway", services)
    (device,) = services["triton-2"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["1"]
    options.parser().parse_args(services["triton-2"]["command"][1:])
