"""Where settings come from: the command line counts more than variables, and those more than a file."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.cli.main import main, make_parser

Capture = pytest.CaptureFixture[str]

FILE = """
model: folder
max-model-len: 4K
enforce_eager: true
enable-prefix-caching: false
served-model-name: [a, b]
port: 9
default-chat-template-kwargs:
  enable_thinking: false
api-key: secret
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(FILE)
    return path


def test_three_sources_and_their_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSTART_PORT", "10")
    monkeypatch.setenv("HOTSTART_SEED", "3")
    monkeypatch.setenv("HOTSTART_ENFORCE_EAGER", "0")
    monkeypatch.setenv("HOTSTART_MAX_MODEL_LENGHT", "1")
    found = make_parser().parse_args(["serve", "--config", str(file), "--seed", "4"])
    assert (found.model, found.max_model_len, found.seed, found.port) == ("folder", "4K", "4", "10")
    assert (found.enforce_eager, found.enable_prefix_caching) == (False, False)
    assert (found.served_model_name, found.api_key) == (["a", "b"], ["secret"])
    assert found.default_chat_template_kwargs == '{"enable_thinking": false}'
    shown = found.settings.explain()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.splitlines()}
    assert rows["port"] == "10 environment, HOTSTART_PORT"
    assert rows["seed"] == "4 command line"
    assert rows["max-model-len"] == "4K server.yaml"
    assert "secret" not in shown
    assert "HOTSTART_MAX_MODEL_LENGHT is set and read by nobody; did you mean HOTSTART_MAX_MODEL_LEN?" in shown


def test_what_kubernetes_and_vllm_set_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSTART_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    found = make_parser().parse_args(["serve", "m"])
    assert "port" not in found and not found.api_key
    shown = found.settings.explain()
    assert "HOTSTART_PORT is what Kubernetes sets" in shown
    assert "variables of vLLM are read by nobody: VLLM_API_KEY" in shown and "secret" not in shown


def test_a_flag_of_the_same_setting_counts_more_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSTART_JIT_MONITOR_MODE", "warn")
    assert make_parser().parse_args(["plan", "m", "--strict"]).jit_monitor_mode == "error"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "holds no settings"),
        ("a: [", "is not YAML"),
        ("port:", "gives port no value"),
        ("config: other.yaml", "names another file"),
        ("enforce-eager: maybe", "write true or false"),
        ("max-num-sequences: 3", "max-num-seqs"),
    ],
)
def test_a_bad_file_is_named(text: str, words: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    try:
        assert main(["serve", "m", "--config", str(tmp_path / "bad.yaml")]) == 2
    except SystemExit as error:
        assert error.code == 2
    err = capsys.readouterr().err
    assert words in err and "bad.yaml" in err
    assert main(["plan", "m", "--config", str(tmp_path / "absent.yaml")]) == 2


def test_no_model_is_a_mistake(capsys: Capture) -> None:
    assert main(["serve"]) == 2
    assert "which model?" in capsys.readouterr().err


def flags() -> st.SearchStrategy[list[str]]:
    """Some flags of `generate` with values, in any order, each written in one way or the other."""
    values = {"--seed": "3", "--max-model-len": "4K", "--prompt": "- 5 = -5", "--cpu-memory": "1GiB", "--stop": "-"}
    values |= {"--cudagraph-capture-sizes": "1,2", "--temperature": "-0.5", "--tokenizer": "", "--top-k": "-1"}
    written = [st.sampled_from([[name, value], [f"{name}={value}"]]) for name, value in values.items()]
    switches = st.sampled_from([["--enforce-eager"], ["--no-enforce-eager"], ["--strict"], ["--chat"]])
    return st.lists(st.one_of(*written, switches), max_size=6).map(
        lambda found: [word for one in found for word in one]
    )


@given(before=flags(), after=flags())
@settings(max_examples=150, deadline=None)
def test_words_mean_what_argparse_says(before: list[str], after: list[str]) -> None:
    plain = make_parser().subparsers["generate"]
    plain._prepare = None
    words = [*before, *(["--chat"] if before else []), "folder", *after]
    wanted = vars(plain.parse_args(words))
    found = vars(make_parser().subparsers["generate"].parse_args(words))
    assert {name: value for name, value in found.items() if name != "settings"} == wanted
