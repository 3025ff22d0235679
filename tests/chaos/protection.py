"""
A deployment that is closed: who may call has a key with a quota, and what is said is under TLS.
"""

import asyncio
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path

from support.certificates import Certificate, certificate

# Callers share the keys of tenants, evenly; a tenant may have as many sessions as it has callers.
TENANTS = 3
_DALSTON = (sys.executable, "-m", "dalston.cli.main")


@dataclass
class Protection:
    """What a closed deployment asks for."""

    certificate: Certificate
    keys_file: Path
    tenants: list[str] = field(default_factory=list[str])  # keys, each of `quota` sessions
    quota: int = 0
    free: str = ""  # a key that may have any number of sessions
    revoked: str = ""  # a key that was good once
    admin_key: str = field(default_factory=lambda: secrets.token_hex(16))
    worker_secret: str = field(default_factory=lambda: secrets.token_hex(16))
    redis_password: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    async def made(cls, folder: Path, callers: int) -> "Protection":
        """With its files in `folder`, for so many callers."""
        keys_file = folder / "keys" / "keys"
        keys_file.parent.mkdir()
        made = cls(certificate(folder), keys_file, quota=-(-callers // TENANTS))
        quota = ("--sessions", str(made.quota))
        tenants = (made.add(f"tenant-{number}", *quota) for number in range(1, TENANTS + 1))
        *made.tenants, made.free, made.revoked = await asyncio.gather(
            *tenants, made.add("free"), made.add("revoked")
        )
        await _dalston(keys_file, "revoke", "revoked")
        return made

    async def add(self, name: str, *options: str) -> str:
        """A new key, as an operator makes one."""
        return await _dalston(self.keys_file, "add", name, *options)

    def secrets(self) -> list[str]:
        """What no log may tell."""
        passwords = [self.admin_key, self.worker_secret, self.redis_password]
        return [*self.tenants, self.free, self.revoked, *passwords]

    def of_gateway(self) -> dict[str, str]:
        return self.of_worker() | {
            "DALSTON_API_KEYS": str(self.keys_file),
            "DALSTON_ADMIN_KEY": self.admin_key,
        }

    def of_worker(self) -> dict[str, str]:
        return {"DALSTON_WORKER_SECRET": self.worker_secret}


async def _dalston(keys_file: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(*_DALSTON, "keys", *arguments),
        env=os.environ | {"PYTHONSAFEPATH": "1", "DALSTON_API_KEYS": str(keys_file)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return said.decode().strip()


def haproxy(certificate: Certificate, fronts: dict[int, int]) -> str:
    """The configuration of a real proxy that ends TLS: ports, and the gateways' ports they lead
    to."""
    lines = [
        "global",
        "  maxconn 2000",
        "defaults",
        "  mode http",
        "  timeout connect 2s",
        "  timeout client 60s",
        "  timeout server 60s",
        "  timeout tunnel 1h",
        "  retries 0",
        "  option forwardfor",
    ]
    for port, gateway in fronts.items():
        lines += [
            f"frontend front-{port}",
            f"  bind 127.0.0.1:{port} ssl crt {certificate.file}",
            f"  default_backend gateway-{port}",
            f"backend gateway-{port}",
            f"  server gateway 127.0.0.1:{gateway}",
        ]
    return "\n".join(lines) + "\n"
