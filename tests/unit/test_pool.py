"""The pool against a model of it: a set of references and a set of kept ids."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.cache.pool import Pool


@given(total=st.integers(1, 8), actions=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_free_used_and_cached_are_all(total: int, actions: list[tuple[int, int]]) -> None:
    pool = Pool("page", total)
    holders: list[int] = []
    kept: set[int] = set()
    for action, pick in actions:
        if action == 0 and (count := min(pick, pool.num_free)):
            taken = pool.take(count)
            assert not set(taken) & (set(holders) | kept), "given out twice"
            holders += taken
        elif action == 1 and (known := sorted({*holders, *kept})):
            pool.share([known[pick % len(known)]])
            holders.append(known[pick % len(known)])
        elif action == 2 and holders:
            pool.release([holders.pop(pick % len(holders))])
        elif action == 3 and (loose := sorted(set(holders) - kept)):
            pool.keep([loose[pick % len(loose)]])
            kept.add(loose[pick % len(loose)])
        elif action == 5:
            lowest = min(set(range(pick)) - set(holders) - kept, default=None)
            assert pool.take_below(min(pick, total)) == (None if lowest is None or lowest >= total else lowest)
            holders += [] if lowest is None or lowest >= total else [lowest]
        elif action == 4 and kept:
            dropped = sorted(kept)[pick % len(kept)]
            pool.drop([dropped])
            kept.remove(dropped)
        assert pool.num_used == len(set(holders)) and pool.num_cached == len(kept - set(holders))
        assert pool.num_free + pool.num_used + pool.num_cached == total
        pool.check(holders, kept)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda pool: pool.take(3),
        lambda pool: pool.release([1]),
        lambda pool: pool.share([1]),
        lambda pool: pool.keep([1]),
        lambda pool: pool.drop([0]),
        lambda pool: pool.check([0, 0], []),
        lambda pool: pool.check([0], [0]),
    ],
)
def test_mistakes_are_seen(mistake) -> None:
    pool = Pool("page", 3)
    assert pool.take(1) == (0,)
    with pytest.raises(AssertionError):
        mistake(pool)
