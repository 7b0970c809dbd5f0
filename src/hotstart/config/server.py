"""ServerConfig: how the server listens, whom it lets in, how much it takes on.  Names are vLLM's where it has one."""

import hashlib
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotstart.config.options import check_options, count, option, parse_object, switch, words
from hotstart.errors import ConfigError

__all__ = ["API_KEY_VARIABLE", "Keys", "ServerConfig", "digest_of"]

API_KEY_VARIABLE = "HOTSTART_API_KEY"
LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Raises ConfigError.  Keys are kept as their SHA-256 digests."""

    host: str = option("address to listen at", "127.0.0.1", metavar="HOST")
    port: int = count("0 takes a free one", 8000, minimum=0)
    uds: str | None = option("Unix socket to listen at, for this user alone, instead of a port", metavar="PATH")
    ssl_certfile: str | None = option("certificate, which turns HTTPS on", metavar="FILE")
    ssl_keyfile: str | None = option("the certificate's key", metavar="FILE")
    allowed_origins: tuple[str, ...] = words(
        "web pages of these origins may ask, such as https://chat.example; * is all of them", (), "ORIGIN"
    )
    allowed_methods: tuple[str, ...] = words("of those pages", ("GET", "POST"))
    allowed_headers: tuple[str, ...] = words("of those pages; * is all", ("*",))
    allow_credentials: bool = switch("of those pages: cookies and such; not with all origins")
    served_model_name: tuple[str, ...] | None = words(
        "the model's names in the API; the first one is told; default: MODEL as given"
    )
    chat_template: str | None = option("file of a chat template; default: the checkpoint's", metavar="FILE")
    default_chat_template_kwargs: Mapping[str, Any] | None = option(
        "what the template is told unless a request says otherwise, such as '{\"enable_thinking\": false}'",
        parse=parse_object,
        metavar="JSON",
    )
    generation_config: str = option(
        "where the sampling comes from that a request leaves open: auto is the checkpoint, vllm nowhere, or a folder",
        "auto",
        metavar="WHERE",
    )
    override_generation_config: Mapping[str, Any] | None = option(
        "changes to that, such as '{\"temperature\": 0.5}'", parse=parse_object, metavar="JSON"
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
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("HTTPS needs both --ssl-certfile and --ssl-keyfile, one of them is missing")
        if self.chat_template is not None and not Path(self.chat_template).is_file():
            raise ConfigError(f"--chat-template: there is no file {self.chat_template}; name one with a Jinja template")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ConfigError("--allow-credentials and all origins together would let any page act for its visitor")

    @property
    def is_loopback(self) -> bool:
        """Whether only users of this machine reach it."""
        if self.uds or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def model_names(self, model: str) -> tuple[str, ...]:
        return self.served_model_name or (model,)


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
