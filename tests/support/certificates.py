"""
A certificate for the loopback interface, of an authority that only its holder trusts.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    file: Path  # key and chain in one, as proxies want them
    server: ssl.SSLContext
    client: ssl.SSLContext


def certificate(folder: Path) -> Certificate:
    """Made anew, in `folder`."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    file = folder / "certificate.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(file))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Certificate(file, server, client)
