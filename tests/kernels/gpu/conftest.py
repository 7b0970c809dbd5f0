"""Kernels on a real GPU, at full sizes and in the dtypes that serve.

make test-gpu
"""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kernels/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _free_memory():
    yield
    torch.cuda.empty_cache()
