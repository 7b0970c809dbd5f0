"""The record of the tests that need a GPU: no test is lost or run twice, whatever is cut, and shards join."""

import pytest

from bench.gpu_tests import cut, join, share


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 50])
@pytest.mark.parametrize("name", ["tests/kernels/gpu/test_gdn_prefill_gpu.py", "tests/gpu/test_other.py"])
def test_each_test_of_a_file_is_in_one_part(name, count):
    tests = [f"{name}::test_{i}" for i in range(count)]
    assert [test for part in cut(tests) for test in part] == tests


def test_cases_that_share_what_a_library_compiles_are_one_part():
    file = "tests/kernels/gpu/test_backends.py"
    errors = tuple(f"{file}::test_our_errors_are_small[{i}]" for i in range(3))
    others = [f"{file}::test_lengths[{i}]" for i in range(2)]
    assert cut([others[0], *errors, others[1]]) == [errors, (others[0],), (others[1],)]


def test_parts_and_shards_join_to_a_row_a_file_and_commit():
    part = {"what": "a.py", "tests": 2, "failed": [], "skipped": ["x"], "seconds": 0.1, "commit": "c"}
    rows = [part | {"figures": {"p": "1"}}, {"what": "a.py", "cut_off": ["a.py::y"], "commit": "c"}]
    rows += [part | {"failed": ["z"], "seconds": 0.2, "figures": {"q": "2"}}, part | {"commit": "d"}]
    first, second = join(rows)
    assert first == {
        "what": "a.py",
        "tests": 4,
        "failed": ["z"],
        "skipped": ["x", "x"],
        "cut_off": ["a.py::y"],
        "seconds": 0.3,
        "figures": {"p": "1", "q": "2"},
        "commit": "c",
    }
    assert second == part | {"commit": "d"}
    assert join([first, second]) == [first, second]


def test_each_file_is_in_one_share():
    files = ["test_backends.py", "test_engine_gpu.py", *(f"test_{i}.py" for i in range(9))]
    shares = [share(files, i, 3) for i in (1, 2, 3)]
    assert sorted(name for some in shares for name in some) == sorted(files)
    assert shares[0][0] == "test_engine_gpu.py" and shares[1][0] == "test_backends.py"
