# SPDX-License-Identifier: Apache-2.0
"""CUDA support of this build and this machine. Queries never fail, with or without a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lampo import _C

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CudaDevice:
    """One GPU that is visible to this process."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    num_sms: int
    memory_total: int  # bytes
    memory_free: int | None  # bytes; None: not measured
    kernel_image: str  # "sm_90a", or "compute_80": PTX that the driver compiles first; "": none
    why: str  # reason that lampo's kernels cannot run on it; "": they can

    @property
    def usable(self) -> bool:
        return not self.why

    @property
    def has_machine_code(self) -> bool:
        """Whether this GPU runs the kernels as they are; if not, the driver compiles them first."""
        return self.kernel_image.startswith("sm_")

    @property
    def kernels(self) -> str:
        """The kind of this GPU's kernels, and what that means where it is PTX."""
        if self.has_machine_code:
            return self.kernel_image
        major, minor = self.compute_capability
        return (
            f"{self.kernel_image}, PTX, which the driver compiles at the first use: that start is "
            f"slow; LAMPO_CUDA_ARCHITECTURES={major}{minor} builds lampo for this GPU"
        )

    def describe(self) -> str:
        major, minor = self.compute_capability
        memory = f"{self.memory_total / 1e9:.1f} GB"
        if self.memory_free is not None:
            memory = f"{self.memory_free / 1e9:.1f} of {memory} free"
        text = f"cuda:{self.index} {self.name}, {major}.{minor}, {self.num_sms} SMs, {memory}"
        return f"{text}: {self.why}" if self.why else f"{text}, kernels: {self.kernels}"


@dataclass(frozen=True)
class CudaInfo:
    """CUDA support of this build on this machine."""

    compiled: bool  # this build has a CUDA backend
    decision: str  # the build's reason for having one or not
    why: str  # reason that CUDA cannot be used, with the remedy; "": it can
    architectures: tuple[str, ...]  # the kernels' targets: "80", "90a-real"
    runtime_version: str | None  # of the CUDA runtime inside lampo: "13.0"
    driver_version: str | None  # newest CUDA of the installed driver; None: no driver
    devices: tuple[CudaDevice, ...]

    @property
    def usable(self) -> bool:
        return not self.why

    def describe(self) -> list[str]:
        """Readable lines: whether CUDA works, the reason if not, and a line per device."""
        if not self.compiled:
            return [f"CUDA: no: {self.why}"]
        versions = f"runtime {self.runtime_version}, driver {self.driver_version or 'none'}"
        built = f"built for {', '.join(self.architectures)}"
        head = f"CUDA: {'yes' if self.usable else f'no: {self.why}'} ({versions}, {built})"
        return [head, *(device.describe() for device in self.devices)]


def cuda_info(measure_free: bool = False) -> CudaInfo:
    """Describe CUDA: the build, the driver, the devices, and obstacles to their use.

    Args:
        measure_free: fill ``memory_free``; this starts a CUDA context on every device, which takes
            some hundred megabytes per device until the process ends.
    """
    raw = _C.cuda_info(measure_free)
    return CudaInfo(
        compiled=raw["compiled"],
        decision=raw["decision"],
        why=raw["why"],
        architectures=tuple(raw["architectures"]),
        runtime_version=_version(raw["runtime_version"]),
        driver_version=_version(raw["driver_version"]),
        devices=tuple(
            CudaDevice(
                index=device["index"],
                name=device["name"],
                compute_capability=(device["major"], device["minor"]),
                num_sms=device["num_sms"],
                memory_total=device["memory_total"],
                memory_free=device["memory_free"] if device["memory_free"] >= 0 else None,
                kernel_image=device["kernel_image"],
                why=device["why"],
            )
            for device in raw["devices"]
        ),
    )


def resolve_device(device: str) -> torch.device:
    """The device of a name: "cpu", "cuda" (the first usable one) or "cuda:<index>".

    Raises:
        TypeError: no text.
        ValueError: another name, or a GPU that cannot be used, with the cause and the remedy.
    """
    if not isinstance(device, str):
        raise TypeError(f"device: expected a text, got {device!r}")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", device):
        raise ValueError(f"device: expected cpu, cuda or cuda:<index>, got {device!r}")
    kind, _, number = device.partition(":")
    info = cuda_info()
    if kind == "cuda" and not info.usable:
        raise ValueError(f"device: {device} cannot be used: {info.why}")
    import torch

    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"device: {device} cannot be used: torch {torch.__version__} finds no GPU, install a "
            "torch build with CUDA"
        )
    if not number:
        return torch.device("cuda", next(d.index for d in info.devices if d.usable))
    index = int(number)
    if index >= len(info.devices):
        raise ValueError(f"device: there is no {device}, this process sees {len(info.devices)}")
    if not info.devices[index].usable:
        raise ValueError(f"device: {device} cannot be used: {info.devices[index].why}")
    return torch.device("cuda", index)


def _version(number: int) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
