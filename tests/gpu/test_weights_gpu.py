"""Weights on their way to a GPU, from sharded checkpoints of some GB: what they take beside themselves."""

import pytest

from bench.weights_peak import CASES, LIMIT_BYTES, measure, write_checkpoint


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loading_takes_little_beside_the_weights(case, tmp_path):
    write_checkpoint(case, tmp_path)
    found = measure(case, tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    # What torch's allocator takes of the driver; the driver's own word is of other processes, too.
    assert found["beside_torch_bytes"] >= 0
    assert max(found["beside_torch_bytes"], found["beside_reserved_bytes"]) <= LIMIT_BYTES
