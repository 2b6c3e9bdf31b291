# SPDX-License-Identifier: Apache-2.0
"""Calls the kernels that run on the CPU: see program.cpp for what is said between them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import torch

DTYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float8_e4m3fn: 3,
    torch.int8: 4,
    torch.uint8: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 8,
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:history_size=1",
}


class Refused(Exception):
    """The executor or the launch refused what the kernel did."""


class SanitizerReport(Exception):
    """A sanitizer stopped the program."""


class Client:
    """Programs that each do what is asked, at the same time, and must agree to the bit."""

    def __init__(self, *programs: Path | list[str | Path], any_nan: bool = False) -> None:
        """`programs`: paths, or command lines. `any_nan`: NaNs of different bits agree."""
        self._any_nan = any_nan
        self._processes = [
            _Process([program] if isinstance(program, Path) else program) for program in programs
        ]

    def call(
        self, op: str, /, *, order: str = "forward", **arguments: torch.Tensor | float
    ) -> None:
        """Runs an op; tensors, views of any stride, are changed in place."""
        tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        numbers = {k: v for k, v in arguments.items() if not isinstance(v, torch.Tensor)}
        backward = int(order == "backward")
        message = [f"op {op} {len(numbers)} {len(tensors)} {backward}\n".encode()]
        message += [f"{name} {float(value)!r}\n".encode() for name, value in numbers.items()]
        for name, tensor in tensors.items():
            data = bytes_of(tensor)
            offset = tensor.storage_offset() * tensor.element_size()
            words = [name, DTYPES[tensor.dtype], tensor.ndim, *tensor.shape, *tensor.stride()]
            message.append(" ".join(map(str, [*words, offset, len(data)])).encode() + b"\n")
            message.append(data)
        sizes = [len(bytes_of(tensor)) for tensor in tensors.values()]
        for process in self._processes:
            process.send(b"".join(message))
        answers = [process.receive(sizes) for process in self._processes]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        for tensor, *results in zip(tensors.values(), *answers, strict=True):
            for other in results[1:]:
                assert agree(tensor.dtype, results[0], other, self._any_nan), "the builds differ"
            if results[0]:
                data = torch.frombuffer(bytearray(results[0]), dtype=torch.uint8)
                whole(tensor).copy_(data)

    def close(self) -> None:
        for process in self._processes:
            process.close()


def agree(dtype: torch.dtype, a: bytes, b: bytes, any_nan: bool) -> bool:
    """Equal to the bit; with `any_nan` except for NaNs, of which there must be the same ones."""
    if a == b or not any_nan or not dtype.is_floating_point:
        return a == b
    x, y = (torch.frombuffer(bytearray(data), dtype=dtype) for data in (a, b))
    nan = x.float().isnan()
    same = x.view(torch.uint8).view(len(x), -1) == y.view(torch.uint8).view(len(y), -1)
    return torch.equal(nan, y.float().isnan()) and bool((same.all(1) | nan).all())


class _Process:
    """One process of a program, started when needed and after a report anew."""

    def __init__(self, command: list[str | Path]) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the client

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def send(self, message: bytes) -> None:
        if self.process is None:
            self.stderr.seek(0)
            self.stderr.truncate()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=os.environ | OPTIONS,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(message)
        self.process.stdin.flush()

    def receive(self, sizes: list[int]) -> list[bytes] | Exception:
        """The tensors, or what to raise."""
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            status = self.process.wait()
            self.process = None
            self.stderr.seek(0)
            report = self.stderr.read().decode(errors="replace")
            return SanitizerReport(f"exit status {status}\n{report[:8000]}")
        answer = line.decode().split()
        if answer[0] == "error":
            return Refused(self._read(int(answer[1])).decode())
        return [self._read(size) for size in sizes]

    def _read(self, size: int) -> bytes:
        assert self.process is not None and self.process.stdout is not None
        data = self.process.stdout.read(size)
        assert len(data) == size
        return data


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage."""
    storage = tensor.untyped_storage()
    return torch.tensor([], dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return whole(tensor).numpy().tobytes()
