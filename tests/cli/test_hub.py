"""Names on the hub: only the files that are needed, the cache and offline mode honoured, errors that say what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub import COMMIT, run_hub

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "tiny-qwen3.5"
NAME = "some/tiny"
# The library reads its variables when it is imported, so each state of them is a process.
PROGRAM = """
import sys
from hotstart.config.engine import EngineConfig
from hotstart.config.hub import fetch
from hotstart.errors import CheckpointError
seen = []
for name, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        wishes = EngineConfig(model=name, revision=revision or None)
        print(fetch(wishes, lambda done, total: seen.append((done, total))).model)
    except CheckpointError as error:
        print("error:", error)
assert all(0 <= done <= total for done, total in seen)
print("told" if seen else "quiet")
"""


def environment_of(home: Path, url: str, **variables: str) -> dict[str, str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, "PYTHONPATH": str(ROOT / "src"), **variables}
    return environment | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}


def ask(home: Path, url: str, *pairs: str, **variables: str) -> list[str]:
    environment = environment_of(home, url, **variables)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *pairs], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_names_on_the_hub(tmp_path: Path) -> None:
    unneeded = {"pytorch_model.bin": b"no", "picture.png": b"no", "config.py": b"no"}
    with run_hub(NAME, CHECKPOINT, **unneeded) as hub:
        (folder, *errors, told) = ask(tmp_path, hub.url, NAME, "", "some/other", "", NAME, "v9")
        assert folder.endswith(f"models--some--tiny/snapshots/{COMMIT}") and told == "told"
        assert {path.name for path in Path(folder).iterdir()} == set(hub.fetched)
        assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(hub.fetched)
        assert not set(unneeded) & set(hub.fetched)
        assert "some/other" in errors[0] and "HF_TOKEN" in errors[0]
        assert "no revision 'v9'" in errors[1]

        hub.fetched.clear()
        small = ["--max-model-len", "64", "--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--quiet"]
        bench = subprocess.run(
            [sys.executable, "-m", "hotstart", "bench", "startup", NAME, *small],
            capture_output=True, text=True, check=False, env=environment_of(tmp_path, hub.url, HF_HUB_OFFLINE="1"),
        )  # fmt: skip
        assert bench.returncode == 0 and json.loads(bench.stdout)["startup"]["ready_s"] > 0, bench.stderr
        assert ask(tmp_path, hub.url, NAME, "", HF_HUB_OFFLINE="1") == [folder, "quiet"]
        assert hub.fetched == []

        shape = [sys.executable, "-m", "hotstart", "plan", NAME, "--gpu", "rtx4090"]
        plan = subprocess.run(
            shape, capture_output=True, text=True, check=False, env=environment_of(tmp_path / "shape", hub.url)
        )
        assert plan.returncode == 0 and plan.stdout.startswith("tiny on NVIDIA"), plan.stderr
        assert "config.json" in hub.fetched and "model.safetensors" not in hub.fetched

        hub.is_gated = True
        (error, _) = ask(tmp_path / "empty", hub.url, NAME, "")
        assert "accept its terms" in error and "HF_TOKEN" in error
        url = hub.url
    assert ask(tmp_path, url, NAME, "") == [folder, "quiet"]  # nobody answers, and nothing is missing
    (unreachable, _) = ask(tmp_path / "empty", url, NAME, "")
    assert "cannot be reached" in unreachable
    (Path(folder) / "model.safetensors").unlink()
    (forbidden, _) = ask(tmp_path, url, NAME, "", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in forbidden


def test_folders_come_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    names = (str(CHECKPOINT), str(tmp_path / "absent"), str(tmp_path / "file"), "no name")
    found = ask(tmp_path, "http://127.0.0.1:9", *(word for name in names for word in (name, "")))
    assert found[0] == str(CHECKPOINT)
    assert "there is no folder" in found[1] and "is a file" in found[2] and "organisation/name" in found[3]
