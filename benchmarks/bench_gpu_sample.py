# SPDX-License-Identifier: Apache-2.0
"""Top-p sampling on a GPU, from float32 logits to tokens; peers: FlashInfer and torch's sort.

FlashInfer computes its own softmax and samples from the probabilities, torch sorts (peers.py).
"cold" logits come from memory, as the buffers rotate. "warm" ones are one buffer, which may be in
the L2 cache, as in a step that has just computed them. Calls are rated by one read of the logits.

    python benchmarks/bench_gpu_sample.py --json FILE
    python benchmarks/bench_gpu_sample.py --device cpu --quick        # only tries the script out
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import gpu
import lampo.ops
import results
from lampo.bench import cost, gpu_peers

VOCAB = 128256
BATCHES, FEW_BATCHES, QUICK_BATCHES = (1, 8, 64, 512), (1, 64, 512), (1, 3)
TOP_P = 0.9
COLUMNS = ["batch", "logits", "cache", "kept", "us", "GB/s", "% of copy"]
COLUMNS += ["FlashInfer us", "x FlashInfer", "sort us", "x sort"]


def make_logits(kind: str, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """flat, peaked: normal with deviation 1 and 4; zipf: probabilities fall with the rank."""
    if kind == "zipf":
        ranks = torch.rand(shape, device=device).argsort(dim=-1) + 1.0
        return -1.1 * torch.log(ranks) + 0.1 * torch.randn(shape, device=device)
    return torch.randn(shape, device=device) * {"flat": 1, "peaked": 4}[kind]


class Sampler:
    """lampo.ops.sample with its buffers, as an engine holds them."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        batch_size, vocab_size = shape
        size = lampo.ops.sampling_workspace_size(vocab_size, device, batch_size)
        self.options: dict[str, Any] = {
            "temperature": torch.ones(batch_size, device=device),
            "top_p": torch.full((batch_size,), TOP_P, device=device),
            "seeds": torch.arange(batch_size, device=device),
            "positions": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "token_ids": torch.empty(batch_size, dtype=torch.int64, device=device),
            "status": torch.empty(batch_size, dtype=torch.int32, device=device),
            "workspace": torch.empty(size, dtype=torch.uint8, device=device),
        }

    def __call__(self, logits: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return lampo.ops.sample(logits, **self.options, **more)


def check(
    logits: torch.Tensor, sampler: Sampler, peer_samplers: dict[str, gpu_peers.Sample]
) -> tuple[float, dict[str, float]]:
    """Number of lampo's candidates, and per peer the share of draws that are not among them.

    Raises:
        AssertionError: lampo's nucleus is not that of a sort, up to a token at the bound.
    """
    kept = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    tokens = sampler(logits, kept=kept)
    probs, ids = torch.softmax(logits.double(), dim=-1).sort(dim=-1, descending=True)
    nucleus = (probs.cumsum(-1) - probs < TOP_P).sum(-1)
    assert (kept.sum(-1) - nucleus).abs().max() <= 1, "lampo's nucleus has another size"
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    inside = ranks < nucleus[:, None] - 1
    assert (kept.gather(-1, ids) | ~inside).all(), "lampo's nucleus has other tokens"
    assert kept.gather(-1, tokens[:, None]).all(), "lampo drew a token that it did not keep"
    strays = {
        name: 1 - float(kept.gather(-1, sample(logits).long()[:, None]).float().mean())
        for name, sample in peer_samplers.items()
    }
    return float(kept.sum(-1).float().mean()), strays


def run_case(kind: str, batch_size: int, warm: bool, device: gpu.Device, copy: float) -> None:
    shape = (batch_size, VOCAB)
    price = cost.sample(*shape)
    sets = device.rotating(lambda: make_logits(kind, shape, device.torch), price.nbytes, warm=warm)
    sampler = Sampler(shape, device.torch)
    peer_samplers: dict[str, gpu_peers.Sample] = {}
    for name, make in gpu_peers.SAMPLING.items():

        def build(make: Any = make) -> gpu_peers.Sample:
            sample: gpu_peers.Sample = make(TOP_P, device.torch)
            sample(sets[0])
            return sample

        if built := device.attempt(name, build):
            peer_samplers[name] = built
    kept, strays = check(sets[0], sampler, peer_samplers)
    samplers: dict[str, gpu_peers.Sample] = {"lampo": sampler, **peer_samplers}
    calls: dict[str, list[gpu.Call]] = {
        name: [partial(call, logits) for logits in sets] for name, call in samplers.items()
    }
    times = device.seconds(calls)
    row: dict[str, Any] = {
        "batch": batch_size,
        "logits": kind,
        "cache": "warm" if warm else "cold",
        "kept": int(kept),
        **gpu.compared(times, price, copy),
    }
    device.report.add(
        row,
        time_us={name: series.summary(1e6) for name, series in times.items()},
        drawn_outside_of_the_nucleus=strays,
        kernels=device.kernels(calls["lampo"][:10]),
    )


def main() -> None:
    args = gpu.parser(__doc__).parse_args()
    torch.manual_seed(0)
    report = results.Report("GPU sampling", COLUMNS, args)
    device = gpu.Device(args, report)
    copy = device.copy_rate()
    report.note(f"top-p {TOP_P}, vocabulary {VOCAB}, float32 logits, a seed for each row")
    batches = QUICK_BATCHES if args.quick else FEW_BATCHES if args.few else BATCHES
    for batch_size in batches:
        for kind in ("zipf",) if args.quick or args.few else ("flat", "peaked", "zipf"):
            for warm in (False,) if args.few else (False, True):
                with device.case(f"batch {batch_size}, {kind}"):
                    run_case(kind, batch_size, warm, device, copy)
    if report.cases:
        report.check(
            "before each row was timed, lampo's kept set was the nucleus of a sort in float64, up "
            "to a token at the bound; the share of the peers' draws outside of it is in the file"
        )
    report.finish(mean_of=("x FlashInfer", "x sort"))
    device.exit()


if __name__ == "__main__":
    main()
