# SPDX-License-Identifier: Apache-2.0
"""Top-p sampling, from logits to tokens: lampo.ops.sample, torch's sort, and softmax alone.

The peer sorts, sums and draws (peers.torch_top_p_by_sort). Softmax alone is the minimum of any
sampler in torch. Logits are uncached; every row has its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import cost
import lampo.ops
import peers
import results
import timing
from lampo import _C

SHAPES = [(1, 128256), (8, 128256), (64, 128256), (64, 49152), (256, 49152)]
QUICK_SHAPES = [(1, 49152), (8, 49152)]
TOP_P = 0.9
COLUMNS = [
    "shape",
    "logits",
    "kept",
    "us",
    "GB/s",
    "share of limit",
    "sort us",
    "ratio",
    "softmax us",
    "softmax ratio",
]


def flat(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape)


def peaked(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape) * 4


def zipf(shape: tuple[int, int]) -> torch.Tensor:
    """Probabilities that fall with the power 1.1 of a token's rank, in random order."""
    ranks = torch.argsort(torch.rand(shape), dim=-1) + 1.0
    return -1.1 * torch.log(ranks) + 0.1 * torch.randn(shape)


class Sampler:
    """lampo.ops.sample with its buffers, as an engine holds them."""

    def __init__(self, shape: tuple[int, int]) -> None:
        batch_size, vocab_size = shape
        self.options = {
            "temperature": torch.ones(batch_size),
            "top_p": torch.full((batch_size,), TOP_P),
            "seeds": torch.arange(batch_size),
            "positions": torch.zeros(batch_size, dtype=torch.int64),
            "token_ids": torch.empty(batch_size, dtype=torch.int64),
            "status": torch.empty(batch_size, dtype=torch.int32),
            "workspace": torch.empty(
                lampo.ops.sampling_workspace_size(vocab_size), dtype=torch.uint8
            ),
        }

    def __call__(self, logits: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return lampo.ops.sample(logits, **self.options, **more)


def check(report: results.Report) -> None:
    """Checks that the candidates are the nucleus of a sort, up to a token at the bound."""
    for make in (flat, peaked, zipf):
        logits = make((4, 128256))
        kept = torch.zeros(logits.shape, dtype=torch.bool)
        tokens = Sampler((4, 128256))(logits, kept=kept)
        probs, ids = torch.softmax(logits.double(), dim=-1).sort(dim=-1, descending=True)
        nucleus = (probs.cumsum(-1) - probs < TOP_P).sum(-1)
        assert (kept.sum(-1) - nucleus).abs().max() <= 1
        for row, count, chosen in zip(kept, nucleus, ids, strict=True):
            assert row[chosen[: int(count) - 1]].all()
        assert kept.gather(1, tokens[:, None]).all()
    report.check("kept sets of 12 rows of 128256 equal the sort-based nucleus within one token")


def main() -> None:
    args = results.parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    _C.set_num_threads(args.threads)
    torch.manual_seed(0)
    report = results.Report("sample", COLUMNS, args)
    check(report)
    limit = timing.read_bandwidth(threads=args.threads)
    report.limit("read bandwidth, 1 GiB, bytes/s", limit)
    for shape in QUICK_SHAPES if args.quick else SHAPES:
        for make in (flat, peaked, zipf):
            sampler = Sampler(shape)
            sets = [make(shape) for _ in range(2)]  # random numbers are slow to make: shift copies
            logits = timing.Rotating(lambda: sets[0].roll(17, -1), sets[0].nbytes)  # noqa: B023
            contestants: dict[str, Callable[[], object]] = {
                "lampo": lambda: sampler(logits()),  # noqa: B023
                "sort": lambda: peers.torch_top_p_by_sort(logits(), TOP_P),  # noqa: B023
                "softmax": lambda: torch.softmax(logits(), dim=-1),  # noqa: B023
            }
            kept = torch.zeros(shape, dtype=torch.bool)
            sampler(sets[0], kept=kept)
            times = timing.interleave(contestants, repeats=args.repeats)
            ratio = timing.pair_ratio(times["sort"], times["lampo"])
            softmax_ratio = timing.pair_ratio(times["softmax"], times["lampo"])
            rate = cost.sample(*shape).gb_per_s(times["lampo"].median)
            report.add(
                {
                    "shape": f"{shape[0]} x {shape[1]}",
                    "logits": make.__name__,
                    "kept": int(kept.sum(-1).float().mean()),
                    "us": times["lampo"].us,
                    "GB/s": rate,
                    "share of limit": rate * 1e9 / limit.median,
                    "sort us": times["sort"].us,
                    "ratio": ratio.median,
                    "softmax us": times["softmax"].us,
                    "softmax ratio": softmax_ratio.median,
                },
                time_us=times["lampo"].summary(1e6),
                ratio_summary=ratio.summary(),
            )
    report.finish(mean_of="ratio")


if __name__ == "__main__":
    main()
