"""`hotstart doctor`: what is there, what is missing and how to get it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hotstart.cli import findings
from hotstart.cli.main import main
from hotstart.kernels import dry

Capture = pytest.CaptureFixture[str]


def doctor(capsys: Capture) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["can_run"] == (code == 0)
    assert all(found["state"] == "ok" or found["remedy"] for found in report["findings"])
    return code, {found["name"]: found for found in report["findings"]}


def test_this_machine_can_run_the_tests(capsys: Capture) -> None:
    code, found = doctor(capsys)
    assert code == 0 and found["pytorch"]["state"] == found["python"]["state"] == "ok"
    assert {"gpu", "tile cache", "memory", "would use"} <= set(found)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("hotstart can run here\n")


def test_what_is_missing_is_told_with_the_way_to_get_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"triton": "3.5.1"}
    monkeypatch.setattr(findings, "_version", versions.get)
    monkeypatch.setattr(findings, "_imported", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    code, found = doctor(capsys)
    assert code == 1 and found["pytorch"]["state"] == found["triton"]["state"] == "missing"
    assert "pip install torch" in found["pytorch"]["remedy"] and "older than 3.6" in found["triton"]["text"]
    assert main(["doctor"]) == 1
    assert "missing: pytorch, triton" in capsys.readouterr().out


def test_a_gpu_that_pytorch_cannot_use(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 580.65.06\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("HOTSTART_CACHE", "/proc/nowhere")
    _, found = doctor(capsys)
    assert "580.65.06" in found["gpu"]["text"] and "cu130" in found["gpu"]["remedy"]
    assert "HOTSTART_CACHE" in found["tile cache"]["remedy"]


def test_a_gpu_that_pytorch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with dry.gpu("rtx5090") as driver, dry.torch_answers(driver):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        properties = SimpleNamespace(name="NVIDIA GeForce RTX 5090", major=12, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**34, 2**35))
        found = {one.name: one for one in (*findings._gpus(), *findings._choice())}
    assert found["gpu 0"].text == "NVIDIA GeForce RTX 5090, sm_120, 16 GiB of 32 GiB free"
    assert found["tiles"].state in ("ok", "note") and found["would use"].text.startswith("the GPU")
