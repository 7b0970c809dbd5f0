"""bench/peers.py on a CPU: what it asks of each engine, what it makes of the answers, and what a limit leaves.

vLLM is a stand-in with the names of vLLM 0.25.1, which is not installed here; any other argument is a TypeError.
"""

import json
import textwrap
from statistics import median

import pytest
from tiny import CONFIGS

from bench.figures_peers import peers_lines
from bench.peer_engines import Task
from bench.peers import compare

TASKS = (Task("first_token", ((64, 1),)), Task("answer", ((64, 33),)), Task("crowd", ((48, 5), (9, 3))))
VLLM = """
    import json, os, time
    from types import SimpleNamespace

    NOTES = os.environ["PEERS_NOTES"]
    HANGS, DIES = (float(os.environ.get(name, "inf")) for name in ("PEERS_HANGS_AFTER", "PEERS_DIES_AFTER"))
    calls = 0


    def note(**facts):
        with open(NOTES, "a") as notes:
            notes.write(json.dumps(facts) + "\\n")


    class SamplingParams:
        def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
            assert temperature == 0.0 and ignore_eos and not detokenize
            self.max_tokens = max_tokens


    class LLM:
        def __init__(self, model, *, dtype, load_format, skip_tokenizer_init, language_model_only, max_model_len,
                     max_num_seqs, max_num_batched_tokens, enable_prefix_caching, gpu_memory_utilization,
                     kv_cache_memory_bytes):
            with open(os.path.join(model, "config.json")) as file:
                note(config=json.load(file), dtype=dtype, load_format=load_format, prefixes=enable_prefix_caching)

        def generate(self, prompts, sampling_params, *, use_tqdm):
            global calls
            calls += 1
            if calls > HANGS:
                time.sleep(600)
            if calls > DIES:
                os._exit(3)
            counts = [params.max_tokens for params in sampling_params]
            note(lengths=[len(prompt["prompt_token_ids"]) for prompt in prompts], counts=counts)
            time.sleep(0.002 * max(counts) + (0.2 if calls == 1 else 0.0))
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * count)]) for count in counts]
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIGS["dense"]))
    return path


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Where the stand-in for vLLM writes what it is asked."""
    (tmp_path / "site" / "vllm").mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").write_text(textwrap.dedent(VLLM))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PEERS_NOTES", str(tmp_path / "notes"))
    return tmp_path / "notes"


def test_vllm_is_asked_as_its_users_ask_it(folder, notes, tmp_path):
    record = compare(folder, ["vllm"], tmp_path / "out.json", limit_s=120, device="cpu", tasks=TASKS)
    start, *calls = map(json.loads, notes.read_text().splitlines())
    assert start["config"]["architectures"] == ["Qwen3_5ForConditionalGeneration"]
    assert start["config"]["text_config"]["hidden_size"] == CONFIGS["dense"]["hidden_size"]
    assert (start["dtype"], start["load_format"], start["prefixes"]) == ("bfloat16", "dummy", False)
    asked = [[tuple(size) for size in zip(call["lengths"], call["counts"], strict=True)] for call in calls]
    assert asked == [list(task.sizes) for task in TASKS for _ in range(6)]  # a first one, and five
    (row,) = record["rows"]
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == [row]
    tasks = row["tasks"]
    assert tasks["first_token"]["first_ms"] > 200 and "not_finished" not in row  # as the stand-in sleeps
    first, answer = (median(tasks[name]["later_ms"]) for name in ("first_token", "answer"))
    assert row["token_ms"] == pytest.approx((answer - first) / 32)
    assert row["engine"] in "\n".join(peers_lines({"tiny": record}))


@pytest.mark.parametrize(
    ("trouble", "limit_s", "measured", "word"),
    [("HANGS_AFTER=0", 1, set(), "not finished in 1 s"), ("DIES_AFTER=6", 120, {"first_token"}, "ended with code 3")],
)
def test_what_was_measured_stays(trouble, limit_s, measured, word, folder, notes, tmp_path, monkeypatch):
    monkeypatch.setenv("PEERS_" + trouble.partition("=")[0], trouble.partition("=")[2])
    record = compare(folder, ["vllm"], tmp_path / "out.json", limit_s=limit_s, device="cpu", tasks=TASKS)
    (row,) = record["rows"]
    assert (set(row["tasks"]), row["not_finished"]) == (measured, word)
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == [row]
    assert f"vLLM ({word})" in "\n".join(peers_lines({"tiny": record}))


def test_engines_answer_side_by_side_and_one_that_is_not_here_is_left_out(folder, tmp_path):
    engines = ["hotstart", "transformers", "transformers-fla", "vllm"]
    record = compare(folder, engines, tmp_path / "out.json", limit_s=200, device="cpu", tasks=TASKS)
    ours, theirs, fla, vllm = record["rows"]
    for row in (ours, theirs):
        assert [set(task) for task in row["tasks"].values()] == [{"first_ms", "later_ms"}] * 3, row
        assert row["versions"]["torch"] and row["token_ms"] > 0 and row["device"] == "cpu"
    assert fla["left_out"] == "fla is not installed" and vllm["left_out"] == "vllm is not installed"
