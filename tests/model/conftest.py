"""One tiny checkpoint of each family, made once a session."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES, make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As the runner does, once for all."""
    with torch.inference_mode():
        yield


@pytest.fixture
def caplog_hotstart(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("hotstart")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            family = next(family for family in FAMILIES if family.name == name)
            with torch.inference_mode(False):
                made[name] = make_checkpoint(family, tmp_path_factory.mktemp(name))
        return made[name]

    return get
