"""`hotstart bench`: every suite runs on any model, and what it writes holds the raw samples."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest
from tiny import CONFIGS

from bench import gpu_table, promise
from hotstart.cache.layout import cache_layout
from hotstart.cli.bench import NAMES
from hotstart.cli.flags import engine_config
from hotstart.cli.main import main, make_parser
from hotstart.config.model import read_model_config
from hotstart.request import SamplingParams

# Options that whoever has the tokenizer follows, and those that each request of the traffic has.
ABOVE_THE_ENGINE = {"n", "bad_words", "stop", "skip_special_tokens", "include_stop_str_in_output"}
OF_EVERY_REQUEST = {"max_tokens", "ignore_eos"}
ROOT = Path(__file__).parents[2]
SMALL = ["--max-model-len", "128", "--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--dtype", "float32"]


def test_all_suites_in_one_process(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    what = "startup,first-request,latency,steps,options,lengths,traffic"
    model = str(ROOT / "checkpoints" / "tiny-qwen3.5")
    layout = cache_layout(read_model_config(model), 16, "float32", "float32")
    few_pages = ["--tokenizer", model, "--kv-cache-memory-bytes", str(8 * layout.slot_bytes + 30 * layout.page_bytes)]
    assert main(["bench", what, model, *SMALL, *few_pages, "--requests", "40", f"--output={out}", "--quiet"]) == 0
    found = json.loads(out.read_text())
    assert found["num_late"] == 0 and found["reserved_growth_bytes"] == 0
    traffic = found["traffic"]
    assert traffic["failed"] == 0 == len(traffic["missing"]) and traffic["brought"]["preemptions"] > 2
    assert traffic["options"].keys() >= {f.name for f in fields(SamplingParams)} - ABOVE_THE_ENGINE - OF_EVERY_REQUEST
    assert len(found["first-request"]["times_ms"]) == 21 and len(found["lengths"]["samples_ms"]) == 50
    assert list(found["latency"]["ttft_ms"]) == ["64"] and found["startup"]["ready_s"] > 0
    assert not found["options"]["errors"] and found["options"]["times_as_long"]["greedy"] == 1.0
    assert sum(tokens for tokens, _, _ in found["steps"]["steps"]) >= 8 * (64 + 31)
    assert found["plan"]["num_slots"] == 8
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()


def test_crowds_with_weights_at_random_from_a_config_alone(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["dense"]))
    limits = ["--max-model-len", "32", "--max-num-seqs", "64", "--max-num-batched-tokens", "512"]
    wishes = ["--load-format", "dummy", *limits, "--output", str(out), "--quiet"]
    assert main(["bench", "throughput,burst", str(tmp_path), *wishes]) == 0
    found = json.loads(out.read_text())
    assert {name: len(crowd["samples_per_s"]) for name, crowd in found["throughput"].items()} == {
        "64x16/8": 3,
        "256x16/8": 3,
    }
    assert len(found["burst"]["seconds"]) == 2 and found["burst"]["failed"] == 0 == found["num_late"]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (["speed"], "'speed' is nothing that can be measured"),
        (["latency", "--output", "/no/folder/x.json"], "--output: there is no folder /no/folder"),
        (["latency", "--max-model-len", "15"], "up to 15 tokens here, too few"),
        (["neighbour", "--max-model-len", "16"], "no other process could take 2 GiB here"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_measured_is_refused(
    wishes: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["dense"]))
    what, *flags = wishes
    assert main(["bench", what, str(tmp_path), "--load-format", "dummy", "--quiet", "--device", "cpu", *flags]) == 2
    assert words in capfd.readouterr().err


def test_the_shortest_sequences_that_can_be_measured_are(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["dense"]))
    what = "startup,first-request,latency,steps,lengths,traffic"
    wishes = ["--load-format", "dummy", "--max-model-len", "16", "--requests", "20", "--quiet", "--output", str(out)]
    assert main(["bench", what, str(tmp_path), *wishes]) == 0
    found = json.loads(out.read_text())
    assert found["latency"]["token_ms"] > 0
    assert [error for suite in what.split(",") for error in found[suite].get("errors", [])] == []


@pytest.mark.parametrize("job", [*gpu_table.JOBS, *promise.JOBS], ids=lambda job: job.name)
def test_the_commands_of_the_tables_are_understood(job: gpu_table.Job, tmp_path: Path) -> None:
    _, _, module, *words = job.command(tmp_path, tmp_path / "found.json")
    if module == "hotstart":
        arguments = make_parser().parse_args(words)
        assert set(arguments.what.split(",")) <= set(NAMES) and engine_config(arguments).device == "cuda"
    else:
        assert importlib.util.find_spec(module) is not None
