# SPDX-License-Identifier: Apache-2.0
"""Mutants of tiny models, each loaded and run: `python model_mutants.py KIND START FIRST COUNT`.

With `load` behind them mutants are loaded alone, tensor by tensor, which takes milliseconds.

A mutant is a function of its kind and number. It must give a working model, or a ValueError of one
bounded line, within bounded memory and time. Before a mutant is loaded its number is printed, so
that the output of a process that was killed names the cause.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import resource
import shutil
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_ERROR_CHARS = 1500
MAX_MEMORY = 800 << 20  # bytes above those of the start
MAX_LOADED = 64 << 20  # likewise, of mutants that are loaded alone; the files have below 1 MB
MAX_ADDRESSES = 48 << 30  # address space: the cache of a long context is only reserved
MAX_SECONDS = 20.0  # of the processor

NUMBERS = [0, 1, -1, 2, 3, 7, 255, 1 << 16, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, (1 << 32) - 1]
NUMBERS += [1 << 32, (1 << 63) - 1, -(1 << 63)]
VALUES: list[Any] = [*NUMBERS, True, False, None, 0.5, -1.0, 1e30, math.nan, math.inf]
VALUES += ["", "x", "x" * 70_000, "\u2581" * 300, "{{", "{% for %}", "\0", "\U0010fffd", "\ud800"]
VALUES += ["llama", "gpt2", "qwen2", "default", "BPE", [], [0], [[]], ["x"] * 5000, [1.5] * 3, {}]

STRING, ARRAY, BOOL, U32, F32, I64 = 8, 9, 7, 4, 6, 11


def mutated(rng: random.Random, value: Any) -> Any:
    """Another value: slightly different, or of any kind."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        return mutated_dict(rng, value)
    if isinstance(value, list) and value and rng.random() < 0.8:
        return mutated_list(rng, value)
    if isinstance(value, bool) and rng.random() < 0.5:
        return not value
    if isinstance(value, int) and rng.random() < 0.6:
        return rng.choice([value + 1, value - 1, value * 2, value // 2, -value, float(value)])
    if isinstance(value, float) and rng.random() < 0.5:
        return value * rng.choice([-1.0, 0.0, 1e-30, 0.5, 2.0, 1e30])
    if isinstance(value, str) and rng.random() < 0.6:
        at = rng.randrange(len(value) + 1)
        piece = rng.choice(["", value, "\u2581", "<", "{{", "}}", "\0", " ", "\ud800", "é" * 200])
        return value[:at] + piece + value[at + rng.randrange(3) :]
    return rng.choice(VALUES)


def mutated_dict(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    key = rng.choice(list(value))
    kind = rng.random()
    if kind < 0.15:
        return {k: v for k, v in value.items() if k != key}
    if kind < 0.25:
        return {**value, rng.choice(["", "x", key + "x", key.upper()]): rng.choice(VALUES)}
    if kind < 0.3:
        return {**value, key: value[rng.choice(list(value))]}
    return {**value, key: mutated(rng, value[key])}


def mutated_list(rng: random.Random, value: list[Any]) -> list[Any]:
    at, kind = rng.randrange(len(value)), rng.random()
    if kind < 0.2:
        return value[:at] + value[at + 1 :]
    if kind < 0.3:
        return value[:at]
    if kind < 0.4:
        return value + value[at : at + 3]
    if kind < 0.5:
        return rng.sample(value, len(value))
    return [*value[:at], mutated(rng, value[at]), *value[at + 1 :]]


def damaged(rng: random.Random, content: bytes, header: int) -> bytes:
    """Other bytes: some replaced, mostly in the header, or some left out."""
    data = bytearray(content)
    end = header if rng.random() < 0.8 else len(data)
    kind = rng.random()
    if kind < 0.2:
        return bytes(data[: rng.randrange(len(data))])
    at = rng.randrange(max(end - 8, 1))
    if kind < 0.5:
        data[at : at + 8] = struct.pack("<q", rng.choice(NUMBERS[:12] + NUMBERS[13:]))
    elif kind < 0.6:
        del data[at : at + rng.randrange(1, 64)]
    else:
        for _ in range(rng.choice((1, 1, 2, 16))):
            data[rng.randrange(end)] = rng.choice((0, 1, 9, 127, 128, 255))
    return bytes(data)


def gguf_string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> tuple[int, bytes]:
    """GGUF's type and bytes of a value; lists have the type of their first element."""
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return U32, struct.pack("<I", value)
        return I64, struct.pack("<q", max(min(value, (1 << 63) - 1), -(1 << 63)))
    if isinstance(value, float):
        with_inf = value if abs(value) < 3e38 or not math.isfinite(value) else math.inf
        return F32, struct.pack("<f", with_inf)
    if isinstance(value, str):
        return STRING, gguf_string(value)
    if isinstance(value, list):
        kind = gguf_value(value[0])[0] if value else U32
        items = [item for found, item in map(gguf_value, value) if found == kind]
        return ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items)
    return STRING, gguf_string(repr(value))


def gguf_bytes(metadata: dict[str, Any], tensors: list[list[Any]], data: bytes) -> bytes:
    """A file. tensors: name, dims with the innermost first, type, offset."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, encoded = gguf_value(value)
        parts += [gguf_string(key), struct.pack("<I", kind), encoded]
    for name, dims, kind, offset in tensors:
        parts += [gguf_string(str(name)), struct.pack("<I", len(dims))]
        parts += [struct.pack("<Q", dim % (1 << 64)) for dim in dims]
        parts.append(struct.pack("<IQ", kind % (1 << 32), offset % (1 << 64)))
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % 32) + data


class GGUFMutants:
    """Mutants of one GGUF file: of its metadata, its list of tensors, or its bytes."""

    def __init__(self, start: Path) -> None:
        from lampo.weights.formats import GGML_TYPES
        from lampo.weights.gguf import GGUFFile

        file = GGUFFile(start)
        self.content = start.read_bytes()
        infos = file.header.tensors.values()
        self.header = min(info.offset for info in infos)
        self.metadata = dict(file.metadata)
        numbers = {found.name: number for number, found in GGML_TYPES.items()}
        self.tensors = [
            [t.name, list(t.shape[::-1]), numbers[t.type.name], t.offset - self.header]
            for t in infos
        ]
        file.close()

    def write(self, rng: random.Random, folder: Path) -> Path:
        path = folder / "m.gguf"
        kind = rng.random()
        if kind < 0.25:
            path.write_bytes(damaged(rng, self.content, self.header))
            return path
        metadata, tensors = self.metadata, self.tensors
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if kind < 0.85:
                metadata = mutated_dict(rng, metadata)
            else:
                tensors = self.mutated_tensors(rng, tensors)
        path.write_bytes(gguf_bytes(metadata, tensors, self.content[self.header :]))
        return path

    def mutated_tensors(self, rng: random.Random, tensors: list[list[Any]]) -> list[list[Any]]:
        if not tensors or rng.random() < 0.2:
            return rng.choice([[], rng.sample(tensors, len(tensors)), tensors[1:], tensors * 2])
        at = rng.randrange(len(tensors))
        name, dims, kind, offset = tensors[at]
        change = rng.randrange(4)
        if change == 0:
            name = rng.choice([name + "x", tensors[0][0], "", "output.weight", name[:-1]])
        elif change == 1:
            dims = [rng.choice([*NUMBERS, dim, dim * 2, dim // 2]) for dim in dims]
        elif change == 2:
            kind = rng.randrange(40)
        else:
            offset = rng.choice([*NUMBERS, offset + 32, offset - 32, offset + 1])
        return [*tensors[:at], [name, dims, kind, offset], *tensors[at + 1 :]]


class FolderMutants:
    """Mutants of a folder: of one of its JSON files, a header of safetensors, or any bytes."""

    def __init__(self, start: Path) -> None:
        self.files = {file.name: file.read_bytes() for file in sorted(start.iterdir())}
        self.texts = [name for name in self.files if name.endswith(".json")]
        self.weights = [name for name in self.files if name.endswith(".safetensors")]

    def write(self, rng: random.Random, folder: Path) -> Path:
        files = dict(self.files)
        for _ in range(rng.choice((1, 1, 1, 2))):
            kind = rng.random()
            if kind < 0.7:
                name = rng.choice(self.texts)
                files[name] = self.mutated_json(rng, files[name])
            elif kind < 0.85:
                name = rng.choice(self.weights)
                length = int.from_bytes(files[name][:8], "little")
                head = self.mutated_json(rng, files[name][8 : 8 + length])
                rest = files[name][8 + length :]
                files[name] = struct.pack("<Q", len(head)) + head + rest
            else:
                name = rng.choice(list(files))
                files[name] = damaged(rng, files[name] or b"\0", min(len(files[name]), 4096) or 1)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    def mutated_json(self, rng: random.Random, content: bytes) -> bytes:
        try:
            return json.dumps(mutated(rng, json.loads(content))).encode()
        except (ValueError, UnicodeEncodeError):  # of an earlier mutation
            return content


# By the bytes of an element.
_SAME_SIZE = [
    ["I32", "F32", "U32"],
    ["F16", "BF16", "I16"],
    ["U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"],
]


class QuantizedMutants(FolderMutants):
    """Mutants of a folder with a quantization_config: of it, of dtypes, shapes, scales, bytes."""

    def write(self, rng: random.Random, folder: Path) -> Path:
        kind = rng.random()
        if kind < 0.2:
            return super().write(rng, folder)
        files = dict(self.files)
        for _ in range(rng.choice((1, 1, 2))):
            if kind < 0.5:
                config = json.loads(files["config.json"])
                key = "quantization_config"
                config[key] = mutated(rng, config[key])
                files["config.json"] = json.dumps(config).encode()
            else:
                name = rng.choice(self.weights)
                files[name] = self.mutated_weights(rng, files[name])
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    def mutated_weights(self, rng: random.Random, content: bytes) -> bytes:
        """Another dtype or shape of the same size, a tensor less, or other bytes of a tensor."""
        length = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
        entry = header[name]
        change = rng.random()
        if change < 0.25:
            sizes = next((same for same in _SAME_SIZE if entry["dtype"] in same), [entry["dtype"]])
            entry["dtype"] = rng.choice(sizes)
        elif change < 0.45:
            shape = entry["shape"]
            ways = [shape[::-1], [*shape, 1], [1, *shape], [math.prod(shape)]]
            if shape and shape[0] % 2 == 0:
                ways.append([shape[0] // 2, *shape[1:], 2])
            entry["shape"] = rng.choice(ways)
        elif change < 0.6:
            other = rng.choice(names)
            header[name], header[other] = header[other], entry
        elif change < 0.7:
            header[rng.choice([name + "x", name[:-1], "x"])] = header.pop(name)
        else:
            begin, end = entry["data_offsets"]
            at = rng.randrange(begin, max(end, begin + 1))
            data[at : at + 16] = bytes([rng.choice((0, 127, 128, 255))]) * len(data[at : at + 16])
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + bytes(data)


KINDS: dict[str, Callable[[Path], Any]] = {
    "gguf": GGUFMutants,
    "folder": FolderMutants,
    "quantized": QuantizedMutants,
}


def load(path: Path) -> str:
    """Loads all tensors of a model, into packed formats too; returns as :func:`use`."""
    from lampo import ops
    from lampo.models.checkpoint import load_checkpoint
    from lampo.weights.formats import CodedMatrix

    formats = ops.weight_formats()
    try:
        with load_checkpoint(path) as checkpoint:
            for name in checkpoint.names():
                tensor = checkpoint.load(name)
                if isinstance(tensor, CodedMatrix):
                    tensor.rows(0, 1)
                    blocks = tensor.packed(formats)
                    if blocks is not None:
                        ops.pack_weight(blocks.blocks, blocks.format)
    except ValueError as error:
        return str(error) or "?"
    return ""


def use(path: Path) -> str:
    """Loads and runs a model; the one error that is allowed, or "" for a working model."""
    from lampo import LLM, SamplingParams

    try:
        with LLM(path, max_num_seqs=2, page_size=16) as llm:
            prompt = [3 % llm.config.vocab_size] * min(4, llm.max_model_len - 1)
            params = SamplingParams(max_tokens=2, temperature=0)
            if prompt:
                (result,) = llm.generate([prompt], params)
                ids = result.outputs[0].token_ids
                assert all(0 <= token_id < llm.config.vocab_size for token_id in ids), ids
            ids = llm.tokenizer.encode("Naïve <|im_end|> 123\n\u2581 日本", parse_special=True)
            llm.tokenizer.decode(ids, skip_special_tokens=False)
            with contextlib.suppress(ValueError):  # of the template
                llm.tokenizer.encode_chat([{"role": "user", "content": "<|im_end|> Hi"}])
    except ValueError as error:
        return str(error) or "?"
    return ""


class BoundedLog(logging.Handler):
    """Fails for messages that are not one bounded line."""

    def emit(self, record: logging.LogRecord) -> None:
        check_line(record.getMessage())


def check_line(text: str) -> None:
    assert len(text) <= MAX_ERROR_CHARS, f"{len(text)} characters: {text[:300]}"
    assert "\n" not in text, f"several lines: {text[:300]!r}"


def check(
    mutants: Any, number: int, folder: Path, run: Callable[[Path], str], max_memory: int
) -> str:
    """Runs one mutant, and returns its error or "".

    Raises: AssertionError, or what else the package raised.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = mutants.write(random.Random(number), folder)
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = run(path)
    check_line(error)
    took = time.process_time() - start
    assert took < MAX_SECONDS, f"{took:.1f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < max_memory, f"{grown >> 20} MB"
    return error


def main(kind: str, start: str, first: str, count: str, way: str = "run") -> int:
    from lampo import LLM

    logging.getLogger("lampo").addHandler(BoundedLog())
    logging.getLogger("lampo").propagate = False
    start_path = Path(start)
    if way == "load":
        import torch

        torch.set_num_threads(1)  # the tensors are small
        assert load(start_path) == ""
    else:
        with LLM(start_path):  # imports, and memory that every model takes
            pass
    run, max_memory = (load, MAX_LOADED) if way == "load" else (use, MAX_MEMORY)
    mutants = KINDS[kind](start_path)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    folder = start_path.parent / f"mutant-{kind}"
    worked = 0
    for number in range(int(first), int(first) + int(count)):
        print(f"mutant {number}", flush=True)
        try:
            error = check(mutants, number, folder, run, max_memory)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            print(f"failed: {kind} mutant {number}, which lies in {folder}", flush=True)
            return 1
        worked += not error
        print(f"  {error[:200] or 'works'}", flush=True)
    print(f"{worked} of {count} work")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
