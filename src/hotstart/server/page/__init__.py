"""The page at `/`: one file, with nothing from elsewhere, and a policy that lets nothing else in."""

import base64
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Page", "read_page"]


class Page(NamedTuple):
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


def read_page() -> Page:
    text = (Path(__file__).parent / "index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(text, 'script')}; style-src {_hashes(text, 'style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Page(text.encode(), tuple((name.encode(), value.encode()) for name, value in headers.items()))


def _hashes(text: str, tag: str) -> str:
    bodies = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
