# SPDX-License-Identifier: Apache-2.0
"""The names of devices that a model can run on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lampo import LLM
from lampo.cli.main import main
from lampo.runtime.device import CudaDevice, cuda_info, resolve_device


@pytest.mark.parametrize("text", ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "CUDA"])
def test_unknown_device(text):
    with pytest.raises(ValueError, match="device: expected cpu, cuda or cuda:<index>, got"):
        resolve_device(text)


def test_cpu():
    assert resolve_device("cpu") == torch.device("cpu")


def test_no_usable_gpu(capsys):
    info = cuda_info()
    if info.usable:
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="device: cuda cannot be used: ") as error:
        LLM("/nonexistent", device="cuda")  # said before anything is read
    assert str(error.value).endswith(info.why)
    assert main(["generate", "-m", "/nonexistent", "--device", "cuda:1", "Hello"]) == 2
    assert "cuda:1 cannot be used" in capsys.readouterr().err


def test_choice_among_gpus(monkeypatch):
    old = CudaDevice(0, "Old", (7, 0), 80, 16 << 30, None, "", "Old is older than ...")
    new = replace(
        old, index=1, name="New", compute_capability=(9, 0), kernel_image="sm_90a", why=""
    )
    info = replace(cuda_info(), compiled=True, why="", devices=(old, new))
    monkeypatch.setattr("lampo.runtime.device.cuda_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="cuda:0 cannot be used: Old is older"):
        resolve_device("cuda:0")
    with pytest.raises(ValueError, match="there is no cuda:2, this process sees 2"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch .* finds no GPU, install a torch build with CUDA"):
        resolve_device("cuda")
