"""Reading a checkpoint's small text files, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from hotstart.errors import CheckpointError

__all__ = ["read_json", "read_optional_json", "read_text"]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror}; download the whole checkpoint and give its folder"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); download it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object; download it again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    return read_json(path) if path.exists() else {}
