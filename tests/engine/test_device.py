"""What differs by device."""

import pytest
import torch

from hotstart.engine.device import ONE_THREAD, CpuDevice


@pytest.mark.parametrize(("work", "threads"), ((ONE_THREAD - 1, 1), (ONE_THREAD, 3)))
def test_small_steps_run_on_one_thread(work, threads):
    before = torch.get_num_threads()
    try:
        device = CpuDevice(num_threads=3)
        with device.step_scope(work):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
