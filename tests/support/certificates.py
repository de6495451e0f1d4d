"""Certificates for servers of tests, made by openssl."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Certificate", "make_certificate"]


@dataclass(frozen=True)
class Certificate:
    """A certificate that is its own authority, and its key."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        """What a client is to trust."""
        return self.certificate.read_text()

    def context(self, *protocols: str) -> ssl.SSLContext:
        """A server's context that offers `protocols` (ALPN)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(list(protocols))
        return context


def make_certificate(directory: Path, *names: str) -> Certificate:
    """Make one for `names`, each `DNS:name` or `IP:address`."""
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    command = [
        *(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
        ),
        *("-subj", "/CN=test", "-addext", f"subjectAltName={','.join(names)}"),
        *("-keyout", str(made.key), "-out", str(made.certificate)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return made
