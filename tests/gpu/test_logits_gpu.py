"""Logits of every family on the GPU against transformers: every prompt position, and through 64 decode steps.

Checkpoints are loaded by an engine's start.  Its model then runs steps made by hand, which show all logits, and in
float32 the engine serves the same prompts, so that what is replayed is compared, too.
"""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product, zip_longest

import pytest
import torch
import triton
from families import FAMILIES, REAL_HEADS, make_checkpoint
from stepper import MAX_LENGTH, Stepper
from tolerances import FLOAT32_LOGITS, HALF_MEDIAN_RATIO, HALF_RATIO

from hotstart.config.engine import EngineConfig
from hotstart.config.model import read_model_config
from hotstart.engine import startup
from hotstart.engine.cuda import CudaDevice
from hotstart.engine.kernels import choose_kernels
from hotstart.engine.sizing import read_wishes, step_limits
from hotstart.kernels.launch import LAUNCHERS, recording
from hotstart.request import Request, SamplingParams

DEVICE = "cuda"
LENGTHS = [1, 2, 3, 63, 64, 65, 200]
DECODE_STEPS = 64
SAMPLES = 5  # of all lengths: 1990 positions
TORCH = [("dense-nested", "torch"), ("moe-stacked", "torch")]
REAL = [(family.name, "triton") for family in REAL_HEADS]
CASES = [*((family.name, "triton") for family in FAMILIES), *REAL, *TORCH]
# Binaries take the time, so not all of the tiny ones.
HALVES = [(name, "triton", "bfloat16") for name in ("dense-nested", "moe-per-expert", "next-unnormalised")]
HALVES += [(*case, "bfloat16") for case in (*REAL, *TORCH)] + [(*case, "float16") for case in REAL[:1]]
EVERY = {family.name: family for family in (*FAMILIES, *REAL_HEADS)}


@pytest.fixture(scope="module", autouse=True)
def plain_transformers():
    """Without the kernels that it would take from other packages, and without TF32."""
    hidden = {name: sys.modules.get(name) for name in ("fla", "causal_conv1d")}
    sys.modules.update(dict.fromkeys(hidden))  # such an import fails
    import transformers
    from transformers.models.qwen3_5 import modeling_qwen3_5  # noqa: F401 - chooses now
    from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe  # noqa: F401 - likewise
    from transformers.models.qwen3_next import modeling_qwen3_next  # noqa: F401 - likewise

    for name, module in hidden.items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            where = "cpu" if EVERY[name] in FAMILIES else DEVICE  # tiny ones are those of the CPU's tests
            made[name] = make_checkpoint(EVERY[name], tmp_path_factory.mktemp(name), where)
            torch.cuda.empty_cache()
        return made[name]

    return get


def draw(name, lengths, seed=7):
    """Token ids at random."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(EVERY[name].vocab, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def theirs(folder, dtype, samples):
    """transformers' logits at every position of every sequence, [T, V] float32."""
    from transformers import AutoModelForCausalLM

    experts = {"experts_implementation": "eager"} if dtype == torch.float32 else {}  # else their own choice
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **experts).to(DEVICE)
    return [model(torch.tensor([tokens], device=DEVICE)).logits[0].float() for tokens in samples]


def engine_config(folder, dtype, backend, **wishes):
    small = {"max_model_len": MAX_LENGTH, "max_num_seqs": len(LENGTHS), "max_num_batched_tokens": 512}
    limits = {"kv_cache_memory_bytes": "256MiB", "jit_monitor_mode": "error", "tune": "off", "device": "cuda"}
    return EngineConfig(model=str(folder), dtype=dtype, kernel_backend=backend, **small, **limits, **wishes)


@pytest.fixture(scope="module", autouse=True)
def compiled(checkpoint):
    """The binaries of all engines, side by side: those of one leave most of the processor's cores idle."""
    spaces = []
    for name, backend, dtype in (*((*case, "float32") for case in CASES), *HALVES):
        if backend == "triton":
            config, device = engine_config(checkpoint(name), dtype, backend), CudaDevice(backend)
            model = read_model_config(config.model)
            limits = step_limits(config, model, read_wishes(config, model, device), device)
            spaces.append(choose_kernels(config, model, limits, device).space)
    warmups = dict.fromkeys(launcher.warmup for launcher in LAUNCHERS)
    with ThreadPoolExecutor() as pool, recording(), triton.AsyncCompileMode(pool):
        for space, warmup in product(spaces, warmups):
            warmup(space.on(torch.device("meta")))


@pytest.fixture
def start(request):
    def make(folder, dtype, backend, **wishes):
        engine = startup.start(engine_config(folder, dtype, backend, **wishes))
        request.addfinalizer(engine.close)
        return engine

    return make


@torch.inference_mode()
def run(engine, prompts, answers=(), *, ends_alone=False):
    """Logits of every position, or from each prompt's last one on: prompts in one step, then answers token by token."""

    def allocate(shape, dtype):
        return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)

    stepper = Stepper(engine._runner._model, prompts, engine.device, allocate)
    logits = [[part.float()] for part in stepper.step([len(tokens) for tokens in prompts], ends_alone=ends_alone)]
    for given in zip(*answers, strict=True):
        for tokens, token in zip(stepper.tokens, given, strict=True):
            tokens.append(token)
        for seen, part in zip(logits, stepper.step([1] * len(logits)), strict=True):
            seen.append(part.float())
    return [torch.cat(seen) for seen in logits]


def serve(engine, prompts):
    """Greedy answers of requests that run together, and the log-probabilities of each position's likeliest tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=DECODE_STEPS, ignore_eos=True, logprobs=20)
    for i, tokens in enumerate(prompts):
        engine.add(Request(str(i), tuple(tokens), params, 0.0))
    answers, positions = ([[] for _ in prompts] for _ in range(2))
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            answers[int(event.request_id)] += event.token_ids
            positions[int(event.request_id)] += event.logprobs
    return answers, positions


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_float32_logits_match_transformers(name, backend, checkpoint, start, record_testsuite_property):
    prompts = draw(name, LENGTHS)
    engine = start(checkpoint(name), "float32", backend)
    answers, positions = serve(engine, prompts)
    assert engine.late_events == ()
    whole = [tokens + answer for tokens, answer in zip(prompts, answers, strict=True)]
    exact = theirs(checkpoint(name), torch.float32, whole)
    ours = run(engine, prompts, answers)
    record_testsuite_property(f"{name} {backend} float32 difference", f"{worst(ours, exact):.2g}")
    assert 2.0 < torch.cat(exact).std() < 3.0
    assert worst(ours, exact) < FLOAT32_LOGITS

    ends = [logits[-1 - DECODE_STEPS :] for logits in exact]
    for some in (slice(None), slice(-1, None), slice(2)):  # of one row and of two, products are others
        assert worst(run(engine, prompts[some], answers[some], ends_alone=True), ends[some]) < FLOAT32_LOGITS
    # What was served is what they would have said: the same token is the likeliest at every step.
    assert [end[:-1].argmax(-1).tolist() for end in ends] == answers
    for end, seen in zip(ends, positions, strict=True):
        ids = torch.tensor([position.top_ids for position in seen], device=DEVICE)
        found = torch.tensor([position.top_logprobs for position in seen], device=DEVICE)
        assert (found - end[:-1].log_softmax(-1).gather(1, ids)).abs().max() < 2 * FLOAT32_LOGITS


@pytest.fixture(scope="module")
def float32(checkpoint):
    """transformers' float32 logits of the same tokens, once for all dtypes."""
    known = {}

    def get(name, samples):
        if name not in known:
            known[name] = theirs(checkpoint(name), torch.float32, samples)
        return known[name]

    return get


@pytest.mark.parametrize(("name", "backend", "dtype"), HALVES)
def test_halves_are_no_further_from_float32_than_transformers(
    name, backend, dtype, checkpoint, float32, start, record_testsuite_property
):
    """One rounding can send a token to another expert: it takes a few thousand positions to tell two engines apart."""
    count = len(LENGTHS)
    prompts, answers = draw(name, LENGTHS * SAMPLES), draw(name, [DECODE_STEPS] * count, seed=8)
    samples = [tokens + answer for tokens, answer in zip_longest(prompts, answers, fillvalue=[])]
    exact = torch.cat(float32(name, samples))
    their_error = (torch.cat(theirs(checkpoint(name), getattr(torch, dtype), samples)) - exact).square().mean(-1)
    engine = start(checkpoint(name), dtype, backend, enforce_eager=True)
    found = run(engine, prompts[:count], answers)
    for first in range(count, len(prompts), count):
        found += run(engine, prompts[first : first + count])
    our_error = (torch.cat(found) - exact).square().mean(-1)
    ratio = (our_error.mean() / their_error.mean()).sqrt().item()
    median_ratio = (our_error.median() / their_error.median()).sqrt().item()
    record_testsuite_property(f"{name} {backend} {dtype} error over theirs", f"{ratio:.3f}, median {median_ratio:.3f}")
    assert ratio < HALF_RATIO
    assert median_ratio < HALF_MEDIAN_RATIO
