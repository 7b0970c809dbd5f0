"""The commands: answers on stdout, everything else on stderr, mistakes in one line with exit code 2."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hotstart.cli.flags import ENGINE_GROUPS
from hotstart.cli.main import main
from hotstart.cli.serve import SERVER_GROUPS
from hotstart.config.engine import options
from hotstart.config.options import options_of
from hotstart.config.server import ServerConfig

CHECKPOINT = str(Path(__file__).parents[2] / "checkpoints" / "tiny-qwen3.5")
SMALL = ["--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "2", "--max-num-batched-tokens", "32"]
Capture = pytest.CaptureFixture[str]


def run(command: str, *arguments: str) -> int:
    return main([command, CHECKPOINT, *SMALL, *arguments])


def test_generate_streams_the_answer(capsys: Capture) -> None:
    assert run("generate", "--chat", "--prompt", "Add: 12 + 30") == 0
    out, err = capsys.readouterr()
    assert out == "42\n"
    assert "load weights" in err and "run rungs" in err


def test_generate_reads_standard_input_and_answers_several(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Sort: 93120\n"))
    arguments = ["--chat", "--quiet", "--prompt", "-", "--prompt", "Add: 12 + 30", "--max-tokens", "3", "--strict"]
    assert run("generate", *arguments) == 0
    assert capsys.readouterr() == ("--- 1 of 2\n012\n--- 2 of 2\n42\n", "")


def test_plan_adds_up(capsys: Capture) -> None:
    assert run("plan", "--json", "--quiet", "--cpu-memory", "2GiB") == 0
    plan = json.loads(capsys.readouterr().out)
    assert sum(line["num_bytes"] for line in plan["lines"]) == plan["total_bytes"] == 2**31
    assert (plan["max_model_len"], plan["max_num_seqs"]) == (128, 2)
    assert run("plan", "--quiet") == 0
    assert "state slots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "a", "--max-num-seqs", "two"], "--max-num-seqs: 'two' is not a number"),
        (["--prompt", "a", "--tokenizer", "/nowhere"], "there is no folder /nowhere"),
        (["--prompt", "a", "--cpu-memory", "1MiB"], "raise --cpu-memory to"),
        (["--prompt", ""], "prompt 0: "),
        (["--prompt", "a b c " * 99], "--max-model-len"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan"),
        (["--prompt", "a", "--top-p", "0"], "top_p is 0.0"),
    ],
)
def test_a_mistake_is_one_line(capsys: Capture, arguments: list[str], words: str) -> None:
    assert run("generate", "--quiet", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("hotstart: ") and words in err


def test_what_no_answer_can_follow_is_refused_before_a_model_is_looked_for(capsys: Capture) -> None:
    assert main(["generate", "/nowhere", "--prompt", "a", "--temperature", "nan", "--quiet"]) == 2
    assert "temperature is nan" in capsys.readouterr().err


def test_no_checkpoint_is_a_mistake_too(capsys: Capture, tmp_path: Path) -> None:
    for command in (["plan", str(tmp_path)], ["generate", str(tmp_path / "absent"), "--prompt", "a"]):
        assert main([*command, "--quiet"]) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_every_wish_is_a_flag(capsys: Capture) -> None:
    for command in ("generate", "plan"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert all(option.flag in shown for option in options())
    with pytest.raises(SystemExit, match="2"):
        main(["generate", CHECKPOINT, "--max-sequences", "3"])


def test_groups_of_flags_name_flags() -> None:
    for groups, found in ((ENGINE_GROUPS, options()), (SERVER_GROUPS, options_of(ServerConfig))):
        names = [name for group in groups.values() for name in group]
        assert len(set(names)) == len(names) and set(names) <= {option.name for option in found}


def test_help_and_version_need_no_torch() -> None:
    heavy = "{'torch', 'numpy', 'yaml', 'rich', 'uvicorn', 'huggingface_hub', 'tokenizers', 'http.client'}"
    program = (
        "import sys, hotstart.cli.main as m\n"
        f"try: m.main(['--version'])\nfinally: assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("hotstart ")


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "hotstart", "plan", CHECKPOINT, *SMALL, "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
