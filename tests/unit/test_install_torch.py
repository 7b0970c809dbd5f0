"""Which build of PyTorch `make` takes, with pip and the machine played by the test."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PIN = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
VERSION = PIN.removeprefix("torch==")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "tools" / "install_torch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """Remembers what pip was asked for; `has_cpu_build` says whether pip's own sources hold it."""

    def __init__(self, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, platform: str, has_cpu_build: bool) -> None:
        self.asked: list[str] = []
        self.version: str | None = None
        self.has_cpu_build = has_cpu_build
        monkeypatch.setattr(tool, "pip", self.pip)
        monkeypatch.setattr(tool, "installed_torch", lambda: self.version)
        monkeypatch.setattr(tool.sys, "platform", platform)

    def pip(self, command: str, *arguments: str, quiet: bool = False) -> bool:
        if "--dry-run" in arguments:
            return self.has_cpu_build
        self.asked.append(" ".join([command, *arguments]))
        self.version = None if command == "uninstall" else arguments[0].partition("==")[2] or "2.99.0"
        return True


@pytest.mark.parametrize(
    ("platform", "has_cpu_build", "flags", "asked"),
    [
        ("linux", True, [], f"install {PIN}+cpu"),
        ("linux", False, [], f"install {PIN}+cpu --index-url {CPU_INDEX}"),
        ("darwin", True, [], f"install {PIN}"),
        ("linux", False, ["--index", CUDA_INDEX], f"install {PIN} --index-url {CUDA_INDEX}"),
        ("linux", True, ["--torch", "torch>=2.11"], "install torch>=2.11"),
    ],
)
def test_the_build_that_is_asked_for(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    platform: str,
    has_cpu_build: bool,
    flags: list[str],
    asked: str,
) -> None:
    machine = Machine(tool, monkeypatch, platform, has_cpu_build)
    assert tool.main([str(ROOT / "constraints.txt"), str(tmp_path / "out"), *flags]) == 0
    assert machine.asked == [asked]
    assert (PIN in (tmp_path / "out").read_text()) == (machine.version in (VERSION, f"{VERSION}+cpu"))


def test_a_build_stays_until_another_is_wished_for(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(tool, monkeypatch, "linux", has_cpu_build=True)
    for flags in ([], [], ["--index", CUDA_INDEX], ["--index", CUDA_INDEX], []):
        assert tool.main([str(ROOT / "constraints.txt"), str(tmp_path / "out"), *flags]) == 0
    assert machine.asked == [
        f"install {PIN}+cpu",
        "uninstall --yes --quiet torch triton",
        f"install {PIN} --index-url {CUDA_INDEX}",
    ]
