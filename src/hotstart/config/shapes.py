"""A model's shape by any name it has: a folder, a published size, or a checkpoint on the hub, without its weights."""

from pathlib import Path

from hotstart.config.hub import find_folder
from hotstart.config.model import ModelConfig, read_model_config
from hotstart.config.published import is_published, published_config

__all__ = ["find_shape"]


def find_shape(name: str, revision: str | None = None, download_dir: str | None = None) -> ModelConfig:
    """Raises ConfigError or CheckpointError.  The hub is asked for what is neither a folder nor a published size."""
    if Path(name).is_dir():
        return read_model_config(name)
    if is_published(name) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return published_config(name)
    return read_model_config(find_folder(name, revision, download_dir, False, lambda done, total: None))
