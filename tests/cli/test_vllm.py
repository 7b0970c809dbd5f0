"""Command lines written for vLLM: the table of its flags, what is kept of them, and what is said of the rest."""

import pytest

from hotstart.cli.main import make_parser
from hotstart.cli.parser import Parser
from hotstart.cli.vllm import read_table, strip_command

Capture = pytest.CaptureFixture[str]


def serve_parser() -> Parser:
    return make_parser().subparsers["serve"]


def refusal(capsys: Capture, command: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(strip_command(command.split()))
    return capsys.readouterr().err


def test_the_table_is_whole_and_true_of_our_flags() -> None:
    table, ours = read_table(), serve_parser().flags
    rows = {row.names[0]: row for row in table.values()}
    assert len(rows) == 270  # the options of `vllm serve` in that release, `--help` not counted
    assert sum(len(row.names) for row in rows.values()) == len(table)
    for name, row in rows.items():
        assert row.takes in ("switch", "value", "values", "maybe"), name
        assert row.verdict in ("supported", "harmless", "changes"), name
        assert bool(row.reason) == (row.verdict != "supported" or bool(row.otherwise)), name
        assert row.takes != "switch" or set(row.same) <= {"on", "off"}, name
        assert (row.verdict == "supported") == (name in ours or name == "--model"), name
        if name in ours:
            assert (row.takes == "switch") == (ours[name].takes == "switch"), name
            assert not row.otherwise or ours[name].choices, name


KEPT = [
    ("vllm serve m --tensor-parallel-size 1 --enforce-eager", {"model": "m", "enforce_eager": True}),
    ("serve vllm serve m -tp=1 -dp 1 -pp 1 --trust-request-chat-template=false", None),
    ("serve m --max_num_seqs 8 --dtype half", {"max_num_seqs": "8", "dtype": "float16"}),
    ("serve --model m --max-model-len auto", {"model": "m", "max_model_len": "auto"}),
    ("python -m vllm.entrypoints.openai.api_server --model m --port 9", {"model": "m", "port": "9"}),
    ("serve m --reasoning-parser qwen3 --enable-auto-tool-choice --tool-call-parser hermes", {"model": "m"}),
    ("serve m --no-enable-prefix-caching --gpu-memory-utilization 0.9", {"enable_prefix_caching": False}),
    ("serve m -O 3 -cc.mode 0 --drop-unsupported -O2", {"model": "m"}),
    ("serve m --served-model-name a b --port 1", {"served_model_name": ["a", "b"], "port": "1"}),
    ("serve m --cudagraph-capture-sizes 1 2 4", {"cudagraph_capture_sizes": ["1", "2", "4"]}),
    ("serve --drop-unsupported m -tp 8 --quantization fp8 --enable-lora", {"model": "m"}),
]


@pytest.mark.parametrize(("command", "wanted"), KEPT, ids=[command for command, _ in KEPT])
def test_a_pasted_command_is_read(command: str, wanted: dict[str, object] | None, capsys: Capture) -> None:
    words = strip_command(command.split())
    if wanted is None:
        assert "--trust-request-chat-template=false" in refusal(capsys, command)  # a switch that is given a value
        return
    found = vars(make_parser().parse_args(words))
    assert {name: found[name] for name in wanted} == wanted


def test_all_that_is_not_there_is_told_at_once(capsys: Capture) -> None:
    text = refusal(
        capsys,
        "vllm serve org/m -tp 8 --trust_remote_code --kv-cache-dtype fp8 --speculative-config.method mtp -O3 "
        "--max-num-seq 4 --frobnicate 7 --seed 1 --gdn-prefill-backend cutedsl --mamba-ssm-cache-dtype float16",
    )
    harmless, _, rest = text.partition("without these the answers are others")
    changes, _, unknown = rest.partition("known neither here nor to vLLM")
    assert text.startswith("hotstart: 9 flags of this command")
    for flag in ("-tp 8", "--trust_remote_code", "--speculative-config.method mtp", "--gdn-prefill-backend cutedsl"):
        assert flag in harmless
    assert "--kv-cache-dtype fp8" in changes and "--mamba-ssm-cache-dtype float16" in changes
    assert "did you mean --max-num-seqs?" in unknown and "--frobnicate 7" in unknown
    assert "\n    hotstart serve org/m --seed 1 --max-num-seqs 4\n" in text


def test_what_nobody_knows_is_never_left_out(capsys: Capture) -> None:
    assert "--api-kye secret" in refusal(capsys, "serve m --drop-unsupported --api-kye secret -tp 8")


def test_what_was_left_out_is_told_with_its_effect() -> None:
    arguments = serve_parser().parse_args(["m", "--drop-unsupported", "-tp", "8", "--quantization", "fp8", "-pp", "1"])
    lines = {line.split()[0]: line for line in arguments.settings.explain().splitlines()}
    assert "left out; one GPU" in lines["tensor-parallel-size"]
    assert "THE ANSWERS MAY DIFFER" in lines["quantization"]
    assert "in any case" in lines["pipeline-parallel-size"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serv m", "there is no command 'serv', did you mean serve?"),
        ("generate m --promt a", "there is no flag --promt, did you mean --prompt?"),
        ("generate m --max-num-s 3", "there is no flag --max-num-s"),
        ("plan m n", "'n' is one word too many"),
        ("generate m --device gpu", "invalid choice: 'gpu'"),
    ],
)
def test_a_misspelt_word_is_one_line(command: str, words: str, capsys: Capture) -> None:
    text = refusal(capsys, command)
    assert text.startswith("hotstart: ") and text.count("\n") == 1 and words in text
