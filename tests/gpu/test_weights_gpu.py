"""Weights on their way to a GPU, from sharded checkpoints of some GB: what they take beside themselves."""

import pytest

from bench.weights_peak import CASES, LIMIT_BYTES, measure, write_checkpoint


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loading_takes_little_beside_the_weights(case, tmp_path, record_property):
    write_checkpoint(case, tmp_path)
    found = measure(case, tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    for view in ("beside_torch_bytes", "beside_driver_bytes"):
        record_property(view, found[view])
        assert 0 <= found[view] <= LIMIT_BYTES
