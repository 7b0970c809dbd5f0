"""The page at `/`: what it reads is what /plan says, it needs nothing from elsewhere, and a person can use it."""

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotstart.server.page import read_page
from serve.browser import NAMES, Browser, find_browser
from serve.conftest import KEY, MODEL, Server
from serve.pages import Stage, stage

HTML = read_page().body.decode()
SCRIPT = "".join(re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL))
# What the script calls the items of each list.
ITEMS = {
    "phase": ("startup",),
    "request": ("warmup", "requests"),
    "line": ("memory_plan", "lines"),
    "pool": ("now", "pages"),
}
METHODS = {"map", "filter", "length", "reduce"}
CONTROL = 2
LATE = {
    "kind": "memory",
    "key": "arena",
    "cause": "grew by 1048576 bytes to 2097152, allowed 0",
    "seconds": 0.0,
    "num_bytes": 1048576,
}


def get(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def test_all_that_the_page_reads_is_in_the_plan(server: Server) -> None:
    plan = server.ask("/plan")[1]
    reads = {tuple(found.split(".")[1:]) for found in re.findall(r"\bplan(?:\.[a-z_]+)+", SCRIPT)}
    assert len(reads) > 20
    for path in reads:
        get(plan, path[:-1] if path[-1] in METHODS else path)
    for item, path in ITEMS.items():
        found = get(plan, path)
        sample = found[0] if isinstance(found, list) else found
        names = set(re.findall(rf"\b{item}\.([a-z_]+)", SCRIPT)) - METHODS
        assert names and names <= set(sample), (item, names - set(sample))
    assert set(re.findall(r"\bready\.([a-z]+)", SCRIPT)) - {"json"} <= set(server.ask("/ready", key=None)[1])


def test_the_page_needs_nothing_from_elsewhere_and_nobody_a_key_to_see_it(server: Server) -> None:
    status, text = server.ask("/", key=None)
    assert (status, text) == (200, HTML)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<link[^>]+stylesheet|src=|innerHTML|\son[a-z]+=", HTML)
    assert 'style="' not in HTML  # the policy would refuse it


def test_whoever_cannot_see_is_told_everything() -> None:
    fields = re.findall(r"<(?:input|textarea)[^>]*id=\"(\w+)\"", HTML)
    assert all(f'for="{name}"' in HTML or f'id="{name}" type="number"' in HTML for name in fields) and len(fields) == 3
    sections = re.findall(r"<section id=\"(\w+)\" aria-labelledby=\"([\w-]+)\"", HTML)
    assert len(sections) == HTML.count("<section") and all(f'<h2 id="{title}"' in HTML for _, title in sections)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the PATH (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def scene() -> Iterator[Stage]:
    with stage() as found:
        yield found


def kept(browser: Browser, name: str, tmp_path: Path) -> bytes:
    """A picture, and the page fits the window's width.  HOTSTART_PICTURES names a folder to look at them later."""
    folder = Path(os.environ.get("HOTSTART_PICTURES", tmp_path))
    folder.mkdir(exist_ok=True)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than its window"
    assert browser.problems == []
    return browser.picture(folder / f"page-{name}.png")


def test_with_a_key_a_prompt_is_answered(server: Server, browser: Browser, tmp_path: Path) -> None:
    """From a locked page to an answer, by keyboard alone."""
    browser.look()
    browser.open(server.url)
    browser.wait("!document.querySelector('#lock').hidden", "asked for a key")
    browser.wait("document.querySelector('#status').innerText === 'ready'", "ready")
    browser.problems.clear()  # the refusal is in the log of the browser, too
    browser.value("document.querySelector('#key').focus()")
    browser.type(KEY)
    browser.press("Enter")
    browser.wait("document.querySelector('#lock').hidden && document.querySelector('#count').innerText === '0'", "open")
    assert MODEL in browser.text("#about") and "import\n0" in browser.text("#kinds")
    assert browser.value("document.querySelectorAll('#picture span').length") >= 6
    assert "warm up server" in browser.text("#phases") and "chat, streamed" in browser.text("#warmup")

    browser.value("document.querySelector('#prompt').focus()")
    browser.type("Add: 319 + 395")
    browser.press("Enter", CONTROL)
    browser.wait("/tokens \\(/.test(document.querySelector('#told').innerText)", "answered")
    assert browser.text("#answer") == "714"
    assert browser.text("#told").startswith("4 tokens (stop): first after ")
    browser.wait("/ms|s$/.test(document.querySelector('#first').innerText)", "counted")
    named = {(node["role"], node["name"]) for node in browser.accessible()}
    for node in [("textbox", "Prompt"), ("button", "Send"), ("heading", "Late events"), ("region", "Answer")]:
        assert node in named, sorted(named)
    kept(browser, "light", tmp_path)
    browser.look(dark=True)
    kept(browser, "dark", tmp_path)
    browser.look(width=360, height=800)
    kept(browser, "narrow", tmp_path)


def test_a_long_answer_is_stopped(server: Server, browser: Browser) -> None:
    browser.look()
    browser.open(server.url)
    browser.wait("!document.querySelector('#send').disabled", "ready")
    browser.value("document.querySelector('#prompt').value = 'Copy: ' + 'a b '.repeat(40)")
    browser.value("document.querySelector('#asking').requestSubmit()")
    browser.wait("document.querySelector('#answer').innerText !== ''", "answering")
    browser.value("document.querySelector('#stop').click()")
    browser.wait(
        "['stopped'].includes(document.querySelector('#told').innerText) || "
        "/tokens/.test(document.querySelector('#told').innerText)",
        "stopped",
    )
    server.wait_until(server.is_idle, "idle", 5)


def test_start_up_is_shown_while_it_runs(server: Server, browser: Browser, scene: Stage, tmp_path: Path) -> None:
    whole = server.ask("/plan")[1]
    begun = {
        **whole,
        "status": "loading",
        "phase": "run rungs",
        "note": "9 left",
        "percent": 46.2,
        "memory_plan": None,
        "device": None,
    }
    begun |= {"startup": whole["startup"][:4], "warmup": {"kernels": [], "requests": []}}
    scene.plan = begun
    browser.look()
    browser.open(scene.url)
    browser.wait("document.querySelector('#count').innerText === '46%'", "loading")
    assert browser.text("#status") == "starting, 46 %"
    last = browser.text("#phases tr:last-child")
    assert last.startswith("run rungs") and last.endswith("9 left")
    assert browser.value("document.querySelector('#progress').getAttribute('aria-valuenow')") == "46"
    assert not browser.value("document.querySelector('#try').checkVisibility()")
    kept(browser, "starting", tmp_path)
    scene.plan = whole
    browser.wait("document.querySelector('#count').innerText === '0'", "ready by itself")
    assert browser.value("document.querySelector('#try').checkVisibility()")


def test_start_up_is_no_secret_behind_a_key(server: Server, browser: Browser, scene: Stage) -> None:
    phases = server.ask("/plan")[1]["startup"][:3]
    scene.ready = {"status": "loading", "phase": "load weights", "percent": 31.0, "phases": phases, "note": ""}
    browser.open(scene.url)
    browser.wait("document.querySelector('#status').innerText === 'starting, 31 %'", "loading")
    assert "load weights" in browser.text("#phases")


def test_what_came_late_is_told(server: Server, browser: Browser, scene: Stage, tmp_path: Path) -> None:
    scene.plan = copy.deepcopy(server.ask("/plan")[1])
    scene.plan["late_counts"]["memory"] = 1
    scene.plan["late_events"] = [LATE, {**LATE, "key": "<img src=x onerror=alert(1)>"}]
    browser.look()
    browser.open(scene.url)
    browser.wait("document.querySelector('#count').innerText === '1'", "told")
    assert "memory arena: grew by 1048576 bytes" in browser.text("#events")
    assert "<img src=x" in browser.text("#events") and not browser.value("document.querySelectorAll('img').length")
    assert "ended with an error" in browser.text("#verdict")
    kept(browser, "late", tmp_path)


def test_a_server_that_goes_is_missed(browser: Browser) -> None:
    with stage() as scene:
        scene.ready = {"status": "ready", "phase": "ready", "percent": 100.0, "phases": [], "note": ""}
        browser.open(scene.url)
        browser.wait("document.querySelector('#status').innerText === 'ready'", "ready")
    browser.wait("document.querySelector('#status').innerText === 'not reachable'", "missed")
