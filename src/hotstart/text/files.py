"""Reading a checkpoint's small text files, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from hotstart.errors import CheckpointError

__all__ = ["read_json", "read_text"]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; is the checkpoint complete?") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); fetch it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is no JSON: {error.msg} at line {error.lineno}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected an object")
    return value
