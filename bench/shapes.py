"""Shapes to measure that are not published sizes, and a folder with config.json for any shape.

python -m bench.shapes next-small FOLDER        then: hotstart bench latency FOLDER --load-format dummy
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hotstart.config.model import ModelConfig, parse_model_config
from hotstart.config.published import PUBLISHED

__all__ = ["SHAPES", "model_config", "write_folder"]

SHAPES: dict[str, dict[str, Any]] = PUBLISHED | {
    "next-small": PUBLISHED["qwen3-next-80b-a3b"] | {"num_hidden_layers": 12, "num_experts": 64},
}


def model_config(name: str) -> ModelConfig:
    return parse_model_config(dict(SHAPES[name]), {})


def write_folder(name: str, folder: Path) -> Path:
    """FOLDER/NAME/config.json: the folder's name is what a bench calls the model."""
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[name], indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(write_folder(arguments.name, arguments.folder))


if __name__ == "__main__":
    main()
