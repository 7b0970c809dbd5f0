"""The memory plan: its lines add up, defaults give way in a fixed order, explicit wishes never do."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.engine.memory import Measured, Wish, Wishes, as_size
from hotstart.engine.solve import solve
from hotstart.errors import InsufficientMemory

MIB = 2**20
ROOMY = Measured(
    total_bytes=1024 * MIB,
    total_source="--cpu-memory",
    process_bytes=200 * MIB,
    weights_bytes=100 * MIB,
    buffers_bytes=3 * MIB,
    step_peaks=((1, 2 * MIB), (64, 10 * MIB), (128, 19 * MIB), (256, 40 * MIB), (512, 80 * MIB)),
    page_size=16,
    page_bytes=32 * 1024,
    slot_bytes=4 * MIB,
)


def wishes(explicit=(), model_len=4096, seqs=16, tokens=512):
    values = {"max_model_len": model_len, "max_num_seqs": seqs, "max_num_batched_tokens": tokens}
    return Wishes(**{name: Wish(value, name in explicit) for name, value in values.items()})


def with_total(mib):
    return dataclasses.replace(ROOMY, total_bytes=mib * MIB)


def test_with_enough_memory_the_defaults_stand_and_the_rest_is_unused():
    plan = solve(wishes(), ROOMY)
    assert (plan.max_model_len, plan.max_num_seqs, plan.max_num_batched_tokens) == (4096, 16, 512)
    assert (plan.num_pages, plan.num_slots, plan.notes) == (16 * 256, 16, ())
    assert plan.lines[-1].name == "unused" and plan.lines[-1].num_bytes > 0


def test_scratch_of_tuning_is_told_and_takes_nothing_from_the_caches():
    plan = solve(wishes(), dataclasses.replace(ROOMY, tuning_bytes=300 * MIB))
    assert plan.lines == solve(wishes(), ROOMY).lines
    assert "tuning held 300 MiB before this, all free again" in plan.explain()
    assert plan.as_dict()["tuning_bytes"] == 300 * MIB
    assert "tuning" not in solve(wishes(), ROOMY).explain()


@pytest.mark.parametrize(
    ("mib", "expected"),  # 303 MiB for process, weights and buffers; 8 MiB for 4096 tokens of pages; 1/32 reserve
    [
        (530, (4096, 16, 512)),
        (490, (4096, 16, 256)),
        (420, (4096, 8, 128)),
        (380, (4096, 6, 64)),
        (336, (4096, 1, 64)),
        (330, (1376, 1, 64)),
    ],
    ids=str,
)
def test_defaults_give_way_tokens_if_enough_then_sequences_then_length(mib, expected):
    plan = solve(wishes(), with_total(mib))
    assert (plan.max_model_len, plan.max_num_seqs, plan.max_num_batched_tokens) == expected
    lowered = [note.split()[0] for note in plan.notes]
    names = ("--max-model-len", "--max-num-seqs", "--max-num-batched-tokens")
    assert lowered == [name for name, a, b in zip(names, expected, (4096, 16, 512), strict=True) if a != b]


def test_sequences_give_way_before_steps_become_unfairly_small():
    plan = solve(wishes(), dataclasses.replace(with_total(360), fair_tokens=256))
    assert (plan.max_num_seqs, plan.max_num_batched_tokens) == (1, 256)  # of whose sequences one is shorter
    assert 256 < plan.max_model_len < 4096
    plan = solve(wishes(), dataclasses.replace(with_total(336), fair_tokens=256))
    assert (plan.max_model_len, plan.max_num_seqs, plan.max_num_batched_tokens) == (4096, 1, 64)
    plan = solve(wishes({"max_num_seqs"}), dataclasses.replace(with_total(424), fair_tokens=256))
    assert plan.max_num_batched_tokens == 256 and 256 < plan.max_model_len < 4096


def test_states_leave_pages_as_much_unless_the_number_of_sequences_is_a_wish():
    default, mine = (solve(wishes(explicit, seqs=48), with_total(600)) for explicit in ((), ("max_num_seqs",)))
    assert (default.max_num_seqs, mine.max_num_seqs) == (32, 48)
    assert default.num_slots * ROOMY.slot_bytes <= default.num_pages * ROOMY.page_bytes
    assert "from its default 48 to 32, which fits 600 MiB (--cpu-memory) and gives states no more" in default.notes[0]
    assert mine.num_pages * ROOMY.page_bytes < 50 * MIB and not [note for note in mine.notes if "seqs" in note]
    assert solve(wishes(seqs=48, model_len=512), with_total(600)).num_pages == 48 * 32  # each of them at full length


@pytest.mark.parametrize(
    ("name", "mib"), [("max_model_len", 330), ("max_num_seqs", 340), ("max_num_batched_tokens", 320)]
)
def test_an_explicit_wish_is_met_or_refused_with_its_flag(name, mib):
    plan = solve(wishes({name}), with_total(480))
    assert getattr(plan, name) == getattr(wishes(), name).value
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InsufficientMemory, match=f"; lower {flag}( to .*)?, or raise --cpu-memory to") as refusal:
        solve(wishes({name}, model_len=40_000, seqs=100, tokens=512), with_total(mib))
    if number := re.search(r"lower \S+ to (\d+),", str(refusal.value)):
        short = {"max_model_len": "model_len", "max_num_seqs": "seqs", "max_num_batched_tokens": "tokens"}[name]
        solve(wishes({name}, **{short: int(number[1])}), with_total(mib))
        with pytest.raises(InsufficientMemory):
            solve(wishes({name, "max_model_len"}, **{short: int(number[1]) + 16}), with_total(mib))


def test_only_what_would_help_is_advised():
    with pytest.raises(InsufficientMemory, match=r"; raise --cpu-memory to [0-9]+MiB$"):
        solve(wishes({"max_num_seqs", "max_model_len"}), with_total(310))  # weights alone are too many
    share = dataclasses.replace(with_total(320), total_flag="--share", total_share=0.5, card_bytes=640 * MIB)
    with pytest.raises(InsufficientMemory, match=r"; raise --share to 0\.5[1-9]$"):
        solve(wishes(), share)
    with pytest.raises(InsufficientMemory, match=r"take a GPU with 3[0-9.]+ MiB$"):
        solve(wishes(), dataclasses.replace(share, card_bytes=320 * MIB))


def wishing(mib, total=1024):
    return dataclasses.replace(with_total(total), cache_wish=mib * MIB)


def test_wished_caches_are_as_large_as_that_or_as_of_use():
    plan = solve(wishes(), wishing(100))
    assert plan.num_slots * 4 * MIB + plan.num_pages * 32 * 1024 == 100 * MIB
    assert solve(wishes(), wishing(100_000)).num_pages == 16 * 256  # more would serve no sequence


def test_wished_caches_that_do_not_fit_are_refused_with_what_would():
    assert solve(wishes(), wishing(150, 480)).max_num_batched_tokens == 64  # steps give way, sequences do not
    with pytest.raises(
        InsufficientMemory, match=r"480 MiB may be taken .*caches 190 MiB; lower --kv-cache-mem"
    ) as refusal:
        solve(wishes(), wishing(190, 480))
    enough = int(re.search(r"lower --kv-cache-memory-bytes to (\d+)MiB", str(refusal.value))[1])
    assert solve(wishes(), wishing(enough, 480)).max_num_seqs == 16
    with pytest.raises(InsufficientMemory, match=r"is 50 MiB, 64.03 MiB are .*lower --max-num-seqs to 10, or raise"):
        solve(wishes({"max_num_seqs"}), wishing(50))
    enough = int(re.search(r"--cpu-memory to (\d+)MiB", str(refusal.value))[1])
    assert solve(wishes(), wishing(190, enough)).max_num_seqs == 16


def test_the_remedy_of_a_refusal_is_enough():
    with pytest.raises(InsufficientMemory) as refusal:
        solve(wishes({"max_model_len"}, model_len=100_000), with_total(400))
    enough = int(re.search(r"--cpu-memory to (\d+)MiB", str(refusal.value))[1])
    assert solve(wishes({"max_model_len"}, model_len=100_000), with_total(enough)).max_model_len == 100_000


@settings(max_examples=200, deadline=None)
@given(
    mib=st.integers(300, 2000),
    explicit=st.sets(st.sampled_from(["max_model_len", "max_num_seqs", "max_num_batched_tokens"])),
    model_len=st.integers(1, 20_000),
    seqs=st.integers(1, 64),
    tokens=st.integers(1, 512),
    page_bytes=st.sampled_from([0, 1000, 32 * 1024]),
    slot_bytes=st.sampled_from([0, 12345, 4 * MIB]),
)
def test_whatever_is_solved_adds_up_and_serves_one_full_sequence(
    mib, explicit, model_len, seqs, tokens, page_bytes, slot_bytes
):
    measured = dataclasses.replace(with_total(mib), page_bytes=page_bytes, slot_bytes=slot_bytes)
    try:
        plan = solve(wishes(explicit, model_len, seqs, tokens), measured)
    except InsufficientMemory as refusal:
        short = {"--max-model-len": "model_len", "--max-num-seqs": "seqs", "--max-num-batched-tokens": "tokens"}
        values = {"model_len": model_len, "seqs": seqs, "tokens": tokens}
        for flag, value in re.findall(r"lower (\S+) to (\d+)", str(refusal)):
            solve(wishes(explicit, **values | {short[flag]: int(value)}), measured)  # each of them is enough
        return
    assert sum(line.num_bytes for line in plan.lines) == plan.total_bytes
    assert all(line.num_bytes >= 0 for line in plan.lines)
    assert plan.num_pages * 16 >= plan.max_model_len and plan.num_slots >= plan.max_num_seqs
    assert plan.max_num_batched_tokens >= min(tokens, plan.max_num_seqs)
    if "max_num_seqs" not in explicit and page_bytes and plan.max_num_seqs > 1:
        states_have_no_more = plan.num_slots * slot_bytes <= plan.num_pages * page_bytes
        assert states_have_no_more or plan.num_pages == plan.max_num_seqs * measured.pages_for(plan.max_model_len)
    for name, wish in wishes(explicit, model_len, seqs, tokens)._asdict().items():
        assert getattr(plan, name) == wish.value if name in explicit else getattr(plan, name) <= max(wish.value, 64)
    numbers = [int(n.replace(",", "")) for n in re.findall(r"(?:measured|chosen) +([\d,]+)", plan.explain())]
    assert sum(numbers) == plan.total_bytes and f"{plan.total_bytes:,}" in plan.explain()


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (4 * MIB, "4 MiB"), (2**40, "1 TiB")], ids=str
)
def test_sizes_read_well(number, text):
    assert as_size(number) == text
