"""A model's name to its folder: a folder here, or a checkpoint of the Hugging Face hub, fetched into the hub's cache.

The library's own settings are honoured: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hotstart.config.engine import EngineConfig
from hotstart.config.files import read_optional_json
from hotstart.errors import CheckpointError

__all__ = ["INDEX", "OnBytes", "check_names", "fetch", "find_folder", "is_here"]

OnBytes = Callable[[int, int], None]  # bytes done, bytes known of so far

INDEX = "model.safetensors.index.json"
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
)
ONE_FILE = "model.safetensors"


def is_here(config: EngineConfig) -> bool:
    """Whether nothing needs to be asked of the hub."""
    return all(Path(name).is_dir() for name in (config.model, config.tokenizer) if name)


def check_names(config: EngineConfig) -> None:
    """Raises CheckpointError for a name that is neither a folder's nor one that the hub could have; asks nobody."""
    model = _local_folder(config.model)
    if model is not None:
        _check_config(model)
    if config.tokenizer is not None:
        _local_folder(config.tokenizer)


def fetch(config: EngineConfig, on_bytes: OnBytes = lambda done, total: None) -> EngineConfig:
    """The same wishes, of folders.  Raises CheckpointError with what to do about it."""
    needs_weights = config.load_format != "dummy"
    model = find_folder(config.model, config.revision, config.download_dir, needs_weights, on_bytes)
    _check_config(model)
    tokenizer = config.tokenizer
    if tokenizer is not None:
        tokenizer = str(find_folder(tokenizer, None, config.download_dir, False, on_bytes))
    return replace(config, model=str(model), tokenizer=tokenizer)


def find_folder(
    name: str, revision: str | None, download_dir: str | None, needs_weights: bool, on_bytes: OnBytes
) -> Path:
    """A folder of that name is taken before the hub is asked."""
    here = _local_folder(name)
    if here is not None:
        return here
    folder = _download(name, revision, download_dir, TEXT_FILES, on_bytes)
    if needs_weights:
        shards = sorted(set(read_optional_json(folder / INDEX).get("weight_map", {}).values())) or [ONE_FILE]
        if not all((folder / shard).is_file() for shard in shards):
            folder = _download(name, revision, download_dir, (*TEXT_FILES, *shards), on_bytes)
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise CheckpointError(
                f"{name} lacks {len(missing)} of its {len(shards)} files of weights, the first is {missing[0]}; "
                + ("unset HF_HUB_OFFLINE to fetch them" if _is_offline() else "only safetensors are read")
            )
    return folder


def _local_folder(name: str) -> Path | None:
    """None for a name that only the hub can have."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json")
    if name.startswith(("/", ".", "~")):
        raise CheckpointError(f"there is no folder {name}; give the one that holds config.json, or a name on the hub")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None:
        raise CheckpointError(
            f"there is no folder {name}, and names on the hub have the form organisation/name, such as Qwen/Qwen3.5-4B"
        )
    return None


def _check_config(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    below = sorted(path.parent for path in folder.glob("*/config.json"))
    hint = f"did you mean {below[0]}?" if below else "give the folder of a checkpoint"
    raise CheckpointError(f"{folder} has no config.json; {hint}")


def _download(
    name: str, revision: str | None, download_dir: str | None, files: Sequence[str], on_bytes: OnBytes
) -> Path:
    from huggingface_hub import snapshot_download  # here: who has a folder needs none of it

    with _explained(name, revision):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                allow_patterns=list(files),
                tqdm_class=_bars(on_bytes),
                library_name="hotstart",
            )
        )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """The library's errors as ours, each with its remedy."""
    import httpx
    from huggingface_hub import constants, errors

    cache = constants.HF_HUB_CACHE
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} asks for consent: accept its terms at {constants.ENDPOINT}/{name}, then set HF_TOKEN to a token "
            "of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name}, and the hub has none of that name, or it is private; check its spelling, or "
            "set HF_TOKEN to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision!r}; leave --revision away for the newest") from error
    except errors.LocalEntryNotFoundError as error:
        if _is_offline():
            message = f"{name} is not whole in {cache}, and HF_HUB_OFFLINE forbids to fetch it; unset that once"
        else:
            message = f"{name} is not whole in {cache}, and {constants.ENDPOINT} cannot be reached"
        raise CheckpointError(f"{message}, or give the folder of a copy") from error
    except (errors.HfHubHTTPError, httpx.HTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{name} could not be fetched from {constants.ENDPOINT}: {reason}; try again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{name} could not be kept in {cache}: {reason}; set HF_HOME to a folder with room"
        ) from error


def _bars(on_bytes: OnBytes) -> type[Any]:
    """What the library takes for bars of a terminal, told to us instead."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm brings no types
        def __init__(self, *given: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*given, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if self.unit == "B" and self.total:
                on_bytes(min(int(self.n), int(self.total)), int(self.total))
            return shown

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return Bar
