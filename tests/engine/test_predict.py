"""The foretold plan: its second description of the layers agrees with the layers, and its sum is start-up's own."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from traced import trace

from hotstart.cli.main import main
from hotstart.config.engine import EngineConfig
from hotstart.config.model import ModelConfig
from hotstart.config.published import PUBLISHED, published_config
from hotstart.engine.allocator import Segments
from hotstart.engine.foretell import least_peak
from hotstart.engine.limits import StepLimits
from hotstart.engine.predict import predict, weight_tensors
from hotstart.engine.predict_step import SMALL_BYTES, GpuTraits, StepShapes, _Step, step_bytes
from hotstart.engine.rehearsal import worst_plans
from hotstart.engine.sizes import GpuSizes, padded_rows
from hotstart.errors import ConfigError
from hotstart.kernels import dry
from hotstart.kernels.backends import ops_for
from hotstart.kernels.gpus import parse_gpu
from hotstart.models import build_model

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def foretold(model: str, gpu: str, **wishes: object):
    return predict(EngineConfig(model=model, **wishes), published_config(model), model, parse_gpu(gpu))


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_exact(name: str) -> None:
    config = published_config(name)
    model = build_model(config, ops_for("torch"), torch.bfloat16, torch.float32, num_positions=777)
    tensors = [*model.parameters(), *model.buffers()]
    assert sorted(weight_tensors(config, 2, 777)) == sorted(t.numel() * t.element_size() for t in tensors)


def shortened(config: ModelConfig, layers: int) -> ModelConfig:
    return replace(
        config,
        num_hidden_layers=layers,
        layer_types=config.layer_types[:layers],
        moe_layers=config.moe_layers[:layers],
    )


@pytest.mark.parametrize(
    ("name", "gpu", "num_tokens", "num_seqs"),
    [
        ("qwen3.5-0.8b", "h200", 2048, 256),
        ("qwen3.5-27b", "rtx5090", 1024, 100),
        ("qwen3.5-35b-a3b", "h200", 2048, 40),
        ("qwen3-next-80b-a3b", "rtx4090", 512, 8),
        ("qwen3.5-397b-a17b", "h200", 512, 8),
    ],
)
def test_a_step_takes_what_the_layers_take(
    name: str, gpu: str, num_tokens: int, num_seqs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst of them, on meta, through the same model of the allocator."""
    config = shortened(published_config(name), 8)
    limits = StepLimits(num_seqs, num_tokens, 3000, 16, 64, 128, num_seqs, 1, config.vocab_size)
    plans = worst_plans(num_tokens, limits, thorough=True)
    rows = GpuSizes().row_rungs(limits.slab_rows)
    traits = GpuTraits(parse_gpu(gpu).arch, gpu == "h200")
    shapes = [StepShapes.of(plan, num_tokens, limits, rows) for plan in plans]
    ours = max(step_bytes(config, "bfloat16", limits, traits, one) for one in shapes)
    real = max(reserved for _, reserved in trace(config, limits, plans, gpu, monkeypatch))
    segment = 20 * MIB
    assert abs(ours - real) <= max(segment, 0.03 * real)


def random_lengths(dice: random.Random, limits: StepLimits) -> list[int]:
    """Of a step that traffic can bring: answers, long prompts, short ones, all alike or mixed."""
    left, lengths = dice.choice((limits.max_num_batched_tokens, dice.randint(1, limits.max_num_batched_tokens))), []
    usual = dice.choice(((1,), (2, 64, 65), (1, 1, 1, 300), (limits.max_model_len,)))
    for _ in range(dice.choice((limits.max_num_seqs, dice.randint(1, limits.max_num_seqs)))):
        length = min(left, limits.max_model_len, dice.choice((*usual, dice.randint(1, max(left, 1)))))
        lengths += [length] * (length > 0)
        left -= length
    return sorted(lengths)


@pytest.mark.parametrize(
    ("name", "dtype", "num_seqs", "num_tokens", "length"),
    [
        ("qwen3.5-4b", "bfloat16", 256, 8192, 9216),
        ("qwen3.5-27b", "bfloat16", 64, 8192, 1000),
        ("qwen3.5-35b-a3b", "bfloat16", 1, 1000, 100),
        ("qwen3.5-27b", "float32", 1024, 1024, 33000),
        ("qwen3-next-80b-a3b", "float16", 7, 512, 320),
    ],
)
def test_no_step_takes_more_than_start_up_held_for_the_worst(
    name: str, dtype: str, num_seqs: int, num_tokens: int, length: int
) -> None:
    """In the block that is held, whatever the traffic: else memory would grow after the seal."""
    config, dice = shortened(published_config(name), 4), random.Random(num_seqs)
    limits = StepLimits(num_seqs, num_tokens, length, 16, 64, 128, num_seqs, 1, config.vocab_size)
    traits, sizes = GpuTraits(90, True), GpuSizes()
    rungs, rows = sizes.token_rungs(num_tokens), sizes.row_rungs(limits.slab_rows)

    def rung(tokens: int) -> int:
        return next(one for one in rungs if one >= tokens)

    plans = worst_plans(num_tokens, limits, thorough=True)
    shapes = [StepShapes.of(plan, rung(plan.num_tokens), limits, rows) for plan in plans]
    worst = max(step_bytes(config, dtype, limits, traits, one) for one in shapes)
    for _ in range(12):
        lengths, wants = random_lengths(dice, limits), dice.random() < 0.5
        prompts = [n for n in lengths if n > 1]
        shape = StepShapes(
            tokens=rung(sum(lengths)),
            decodes=len(lengths) - len(prompts),
            prompts=tuple(prompts),
            samples=padded_rows(len(lengths), limits.slab_rows, rows),
            targets=padded_rows(sum(prompts) * wants, limits.slab_rows, rows),
            edits=dice.random() < 0.5,
            logprobs=dice.random() < 0.5,
        )
        held = Segments()
        blocks = [held.take(MIB) for _ in range(SMALL_BYTES // MIB)] + [held.take(worst)]
        for block in blocks:
            held.free(block)
        before = held.reserved
        _Step(config, dtype, limits, traits, shape, held).run()
        assert held.peak == before, shape


def test_large_steps_are_known_before_anything_is_loaded() -> None:
    config, size = published_config("qwen3.5-27b"), 65536
    found = foretold("qwen3.5-27b", "h200", max_num_batched_tokens=size, max_num_seqs=256)
    step = {guess.name: guess for guess in found.guesses}["step peak"]
    limits = StepLimits(256, size, 32768, 16, 64, GpuSizes.slab_rows, 256, 1, config.vocab_size)
    with dry.gpu("h200"):
        assert 8 << 30 < least_peak(config, torch.bfloat16, limits, size) <= step.low


def test_segments_follow_the_allocators_rules() -> None:
    segments = Segments()
    small, medium, large = segments.take(1000), segments.take(3 * MIB), segments.take(50 * MIB + 1)
    assert segments.reserved == (2 + 20 + 52) * MIB
    segments.free(large)
    assert segments.take(40 * MIB)[1] == large[1] and segments.reserved == 74 * MIB  # the rest of it is cut off
    segments.free(medium)
    assert segments.take(20 * MIB)[1] == medium[1]  # its segment is whole again
    segments.free(small)
    segments.take(60 * MIB)
    assert segments.peak == segments.reserved == 134 * MIB


def test_every_end_adds_up_and_the_worst_decides() -> None:
    found = foretold("qwen3.5-9b", "rtx5090")
    assert found.fits and found.expected is not None and found.worst is not None
    for plan in (found.expected, found.worst):
        assert sum(line.num_bytes for line in plan.lines) == plan.total_bytes
    assert found.worst.num_pages < found.expected.num_pages
    for guess in found.guesses:
        assert guess.low <= guess.expected <= guess.high
    assert {g.name: g.origin for g in found.guesses}["process"] == "estimated"
    assert {g.name: g.origin for g in foretold("qwen3.5-4b", "h200").guesses}["process"] == "measured"
    assert found.worst.max_num_batched_tokens >= 2048  # sequences gave way first


@pytest.mark.parametrize(
    ("wishes", "check"),
    [
        ({"max_model_len": 1000}, lambda plan: plan.max_model_len == 1000),
        ({"max_num_seqs": 7}, lambda plan: plan.num_slots == 7),
        ({"max_num_batched_tokens": 512}, lambda plan: plan.max_num_batched_tokens == 512),
        ({"gpu_memory_utilization": 0.5}, lambda plan: plan.total_bytes < 16 << 30),
        ({"device_memory_bytes": "24GiB"}, lambda plan: plan.total_bytes == 24 << 30),
        ({"reserve_bytes": "3GiB"}, lambda plan: plan.measured.reserve_bytes == 3 << 30),
        ({"kv_cache_memory_bytes": "2GiB"}, lambda plan: plan.num_pages * plan.measured.page_bytes < 2 << 30),
        ({"mamba_ssm_cache_dtype": "bfloat16"}, lambda plan: plan.measured.slot_bytes < 27 << 20),
        ({"enforce_eager": True}, lambda plan: plan.measured.graphs_bytes == 0),
    ],
    ids=str,
)
def test_wishes_are_respected(wishes, check) -> None:
    plan = foretold("qwen3.5-4b", "rtx5090", **wishes).worst
    assert plan is not None and check(plan)


def test_what_was_foretold_was_found_on_the_card() -> None:
    """Of `bench.plan_check`: pages and slots within 3 %, no line off by 64 MiB nor by 15 %, fitted on or not."""
    rows = json.loads((ROOT / "bench" / "results" / "plan_check.json").read_text())["rows"]
    for row in rows:
        for pool in (row["pages"], row["slots"]):
            assert abs(pool["foretold"] / pool["found"] - 1) < 0.03
        for line in row["lines"]:
            off = abs(line["foretold"] - line["found"])
            assert off <= min(64 * MIB, 0.15 * line["found"]), (row["model"], line)
    assert {row["options"].get("device_memory_bytes") for row in rows if row["role"] == "check"} >= {None, "32GiB"}


def test_what_cannot_be_foretold_is_refused() -> None:
    for gpu, wishes in (("sm_120", {}), ("h200", {"gdn_prefill_backend": "fla"}), ("h200", {"max_model_len": 10**6})):
        with pytest.raises(ConfigError):
            foretold("qwen3.5-4b", gpu, **wishes)
    with pytest.raises(ConfigError, match="RTX 5090 has 31"):
        foretold("qwen3.5-4b", "rtx5090", device_memory_bytes="48GiB")
    assert (
        "lower --kv-cache-memory-bytes to" in foretold("qwen3.5-9b", "rtx5090", kv_cache_memory_bytes="40GiB").refusal
    )
    assert foretold("qwen3.5-0.8b", "sm_89", device_memory_bytes="8GiB").fits


def test_the_command_answers_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys; from hotstart.cli.main import main; code = main(); sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", program, "plan", "qwen3.5-9b", "--gpu", "rtx5090", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["worst"]["num_pages"] > 0
    assert main(["plan", "qwen3.5-27b", "--gpu", "rtx4090"]) == 3
    out = capsys.readouterr().out
    assert "does not fit" in out and "50.12 GiB" in out and "take a GPU with" in out
    assert main(["plan", "qwen3.5-9b", "--gpu", "rtx5090", "--max-num-seqs", "256"]) == 3
    out = capsys.readouterr().out
    assert "state slots  chosen" not in out and "lower --max-num-seqs to 2" in out
    assert main(["plan", "qwen3.5-9b", "--gpu", "NVIDIA GeForce RTX 5090", "--kv-cache-memory-bytes", "2GiB"]) == 0
    out = capsys.readouterr().out
    assert "to 16, which fits 2 GiB (--kv-cache-memory-bytes) and gives states no more than pages" in out
    assert "pages for 40192 tokens in all" in out
    assert main(["plan", "qwen3.5-9b"]) == main(["plan", "qwen3.5-9b", "--gpu", "h200", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert "add --gpu NAME" in err and "leave out --device cpu" in err
    checkpoint = str(ROOT / "checkpoints" / "tiny-qwen3.5")
    assert main(["plan", checkpoint, "--device", "cpu", "--cpu-memory", "10MiB", "--quiet"]) == 3
    assert "raise --cpu-memory to" in capsys.readouterr().out
