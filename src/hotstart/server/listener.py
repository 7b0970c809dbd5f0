"""Where the server listens, with TLS or without, and how it reaches itself to warm up."""

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from pathlib import Path

from hotstart.config.server import ServerConfig
from hotstart.errors import ConfigError

__all__ = ["Listener"]

BACKLOG = 2048
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Listener:
    """Listens once it is made.  Raises ConfigError if it cannot, or if certificate and key are of no use."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self._check_certificate()
        self.socket = _unix_socket(server.uds) if server.uds else _tcp_socket(server.host, server.port)
        address: tuple[str, int] = ("localhost", 0) if server.uds else self.socket.getsockname()[:2]
        self.name, self.port = address

    @property
    def url(self) -> str:
        if self._server.uds:
            return f"unix:{self._server.uds}"
        scheme = "https" if self._server.ssl_certfile else "http"
        return f"{scheme}://{f'[{self.name}]' if ':' in self.name else self.name}:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As a client of this machine would."""
        context = None
        if self._server.ssl_certfile:
            # It is our own certificate, which names the host that clients use and not this address.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self._server.uds:
            host = "localhost" if context else None
            return await asyncio.open_unix_connection(self._server.uds, ssl=context, server_hostname=host)
        return await asyncio.open_connection(ANY.get(self.name, self.name), self.port, ssl=context)

    def close(self) -> None:
        self.socket.close()
        if self._server.uds:
            Path(self._server.uds).unlink(missing_ok=True)

    def _check_certificate(self) -> None:
        certificate, key = self._server.ssl_certfile, self._server.ssl_keyfile
        if certificate is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"--ssl-certfile {certificate} and --ssl-keyfile {key} are of no use: {reason}; give a PEM certificate "
                "and its key, without a password"
            ) from error


def _no_password() -> str:
    raise ValueError("the key asks for a password")


def _tcp_socket(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --host or --port (0 takes a free one)"
        ) from error
    return found


def _unix_socket(path: str) -> socket.socket:
    """For this user alone.  A socket that nobody listens at any more is replaced."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(Path(path).stat().st_mode) and not _answers(path):
            Path(path).unlink()
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        found.bind(path)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen at --uds {path}: {error.strerror or error}; choose a path that is free"
        ) from error
    finally:
        os.umask(before)
    return found


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
