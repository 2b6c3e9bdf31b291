# SPDX-License-Identifier: Apache-2.0
"""Small kernels of PTX text, compiled and launched by tests."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

from cuda_on_cpu.client import Client
from cuda_on_cpu.ptx.build import OBJECTS, Translated, compile_kernels
from cuda_on_cpu.ptx.parse import parse_text
from cuda_on_cpu.ptx.translate import translate_kernel

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def kernel(body: str, parameters: int, variables: str = "", directives: str = "") -> str:
    """The PTX of a kernel with so many pointers and registers of every type.

    `%rd1`, `%rd2` ... hold the pointers as global addresses, `%r0` the thread's index.
    """
    names = [f"p{i + 1}" for i in range(parameters)]
    loads = "\n".join(
        f"ld.param.u64 %rd{i + 1}, [{name}];\ncvta.to.global.u64 %rd{i + 1}, %rd{i + 1};"
        for i, name in enumerate(names)
    )
    return f"""{HEAD}{variables}
.visible .entry kernel({", ".join(f".param .u64 {name}" for name in names)})
{directives}
{{
.reg .pred %p<40>;
.reg .b16 %rs<40>;
.reg .b32 %r<40>;
.reg .b64 %rd<40>;
.reg .f32 %f<40>;
.reg .f64 %fd<40>;
mov.u32 %r0, %tid.x;
{loads}
{body}
ret;
}}
"""


@cache
def compile_text(text: str) -> Path:
    """The object file of the text's one kernel."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    module = parse_text(text, "kernel.ptx")
    translated = translate_kernel(module, module.kernels[0])
    hash = hashlib.sha256(translated.encode()).hexdigest()[:16]
    (OBJECTS / f"{hash}.cpp").write_text(translated)
    kernel = Translated("kernel", "kernel.ptx", 0, hash)
    compile_kernels([kernel])
    return kernel.object


def run(client: Client, object: Path, *tensors: torch.Tensor, threads: int, **options: int) -> None:
    """Launches a kernel with pointers to the tensors, which it changes in place."""
    path = torch.tensor(list(str(object).encode()), dtype=torch.uint8)
    numbers = {"blocks": 1, "cluster": 1, "shared_bytes": 0, "count": -1} | options
    # Their names give the order.
    named = {f"tensor{i:02}": tensor for i, tensor in enumerate(tensors)}
    client.call("run_object", object=path, threads=threads, **named, **numbers)
