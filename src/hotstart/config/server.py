"""ServerConfig: how the server listens, whom it lets in, how much it takes on.  Names are vLLM's where it has one."""

import hashlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hotstart.config.options import check_options, count, option
from hotstart.errors import ConfigError

__all__ = ["API_KEY_VARIABLE", "Keys", "ServerConfig", "digest_of"]

API_KEY_VARIABLE = "HOTSTART_API_KEY"
LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Raises ConfigError.  Keys are kept as their SHA-256 digests."""

    host: str = option("address to listen at", "127.0.0.1", metavar="HOST")
    port: int = count("0 takes a free one", 8000, minimum=0)
    served_model_name: str | None = option(
        "the model's name in the API, several separated by commas; default: MODEL as given", metavar="NAME"
    )
    max_num_queued_reqs: int = count("requests that may wait beside those that run; more are answered with 503", 256, 0)
    shutdown_timeout: int = count("seconds that running requests get after SIGTERM", 30, minimum=0)
    sse_keep_alive_interval: int = count("seconds of silence in a stream before a comment is sent", 15)
    engine_timeout: int = count("seconds of silence after which the engine's process counts as dead", 15)
    step_timeout: int = count("seconds after which a step counts as stuck, and /health says so", 300)

    def __post_init__(self) -> None:
        check_options(self)
        if self.port > LARGEST_PORT:
            raise ConfigError(f"--port is {self.port}, it must be at most {LARGEST_PORT}")

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def model_names(self, model: str) -> tuple[str, ...]:
        given = self.served_model_name
        names = tuple(name.strip() for name in given.split(",")) if given else (model,)
        if not all(names):
            raise ConfigError(f"--served-model-name is {given!r}, one of its names is empty")
        return names


@dataclass(frozen=True, slots=True)
class Keys:
    """Who is let in.  Without any key everybody is, which only a loopback address or the user's word allows."""

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, given: Sequence[str], config: ServerConfig, insecure: bool) -> "Keys":
        keys = list(given) or [key for key in [os.environ.get(API_KEY_VARIABLE)] if key is not None]
        if not all(keys):
            raise ConfigError("an API key is empty; leave --api-key away to serve without one")
        if not keys and not config.is_loopback and not insecure:
            raise ConfigError(
                f"--host {config.host} lets others reach this server; give --api-key KEY, or --insecure-no-auth if "
                "everybody who can reach it may use it"
            )
        return cls(tuple(map(digest_of, keys)))


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
