"""How the server listens: HTTPS, Unix sockets, and web pages of other origins."""

import asyncio
import json
import ssl
import stat
import subprocess
import urllib.request
from pathlib import Path

import pytest

from hotstart.config.server import ServerConfig
from hotstart.errors import ConfigError
from hotstart.server.cors import Cors
from hotstart.server.listener import Listener
from serve.conftest import START_S

Headers = dict[str, str]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


def test_https_with_a_template_of_ones_own(start_server, certificate: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% if shout %}LOUD {% endif %}{{ messages[0].content }}")
    server = start_server(
        *("--ssl-certfile", certificate[0], "--ssl-keyfile", certificate[1], "--allowed-origins", "https://a.example"),
        *("--chat-template", str(tmp_path / "own.jinja"), "--default-chat-template-kwargs", '{"shout": true}'),
        *("--override-generation-config", '{"temperature": 0}'),
        scheme="https",
        certificate=certificate[0],
    )
    server.wait_until(server.is_ready, "ready", START_S)
    status, tokens = server.ask(
        "/tokenize", {"messages": [{"role": "user", "content": "a"}], "return_token_strs": True}
    )
    assert (status, "".join(tokens["token_strs"])) == (200, "LOUD a")
    text = server.log.read_text()
    rows = [line.split("  ")[0] for line in text.partition("warm up server")[2].splitlines()[1:9]]
    assert rows == ["model", "device", "plan", "capacity", "kernels", "start-up", "late events", "ready at"]
    assert f"ready at     {server.url}/v1" in text and "late events  0 since the seal" in text
    request = urllib.request.Request(server.url + "/health", headers={"Origin": "https://a.example"})
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=certificate[0])) as answer:
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_a_certificate_of_no_use_is_a_mistake(certificate: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        ServerConfig(ssl_certfile=certificate[0])
    for pair in (certificate[::-1], (str(tmp_path / "absent"), certificate[1])):
        with pytest.raises(ConfigError, match="of no use"):
            Listener(ServerConfig(port=0, ssl_certfile=pair[0], ssl_keyfile=pair[1]))


def test_a_unix_socket_is_this_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = ServerConfig(uds=str(path), host="0.0.0.0")
    assert server.is_loopback
    listener = Listener(server)
    assert listener.url == f"unix:{path}" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="cannot listen at --uds"):
        Listener(server)
    listener.socket.close()  # as a process that was killed leaves it
    listener = Listener(server)

    async def greet() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(2))
            writer.close()

        async with await asyncio.start_unix_server(answer, sock=listener.socket):
            reader, writer = await listener.connect()
            writer.write(b"hi")
            found = await reader.read()
            writer.close()
            await writer.wait_closed()
            return found

    assert asyncio.run(greet()) == b"hi"
    listener.close()
    assert not path.exists()


def test_a_busy_port_says_so() -> None:
    listener = Listener(ServerConfig(port=0))
    with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{listener.port}: Address already in use"):
        Listener(ServerConfig(port=listener.port))
    listener.close()


def asked(server: ServerConfig, method: str, headers: Headers) -> tuple[int, Headers]:
    """What one request is answered with, by an application that says 200 to everything."""
    sent: list[dict] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    async def send(message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Cors(app, server)({"type": "http", "method": method, "headers": raw}, None, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_web_pages_of_other_origins() -> None:
    nobody, one, all_of_them = (
        ServerConfig(allowed_origins=origins) for origins in ((), ("https://a.example",), '["*"]')
    )
    ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert asked(nobody, "GET", ask) == (200, {"x": "y"})
    assert asked(nobody, "OPTIONS", ask)[0] == 200  # the application's own answer, whatever that is
    assert asked(one, "GET", ask)[1]["access-control-allow-origin"] == "https://a.example"
    for origin in ("https://a.example.evil", "https://a", "null", "http://a.example"):
        assert asked(one, "GET", {"origin": origin}) == (200, {"x": "y"})
    assert asked(one, "GET", {}) == (200, {"x": "y"})
    status, headers = asked(one, "OPTIONS", ask | {"access-control-request-headers": "authorization"})
    assert status == 204 and headers["access-control-allow-headers"] == "authorization"
    assert headers["access-control-allow-methods"] == "GET, POST" and headers["vary"] == "origin"
    assert asked(all_of_them, "GET", ask)[1]["access-control-allow-origin"] == "*"
    with pytest.raises(ConfigError, match="any page act"):
        ServerConfig(allowed_origins="*", allow_credentials=True)


def test_sampling_that_a_request_leaves_open(tmp_path: Path) -> None:
    from hotstart.config.generation import read_sampling_defaults

    own = {"temperature": 0.7, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    (tmp_path / "empty").mkdir()
    assert read_sampling_defaults(tmp_path).top_k == 20
    assert read_sampling_defaults(tmp_path, "vllm").temperature == 1.0
    assert read_sampling_defaults(tmp_path / "empty", str(tmp_path), {"top_k": 3}).top_k == 3
    with pytest.raises(ConfigError, match=r"no generation_config\.json"):
        read_sampling_defaults(tmp_path, str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="max_new_tokens is none of"):
        read_sampling_defaults(tmp_path, overrides={"max_new_tokens": 3})
