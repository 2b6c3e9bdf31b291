# SPDX-License-Identifier: Apache-2.0
"""GGUF files: every lie in a header is one clear error, and tensors come out as they went in."""

from __future__ import annotations

import logging
import random
import resource
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import DEQUANTIZED, QUANTIZATIONS, interleave_rows, make_gguf, quantized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantized_weights import SAFETENSORS_FORMATS

from lampo import _C, ops
from lampo.models.checkpoint import load_checkpoint
from lampo.models.loader import load_model
from lampo.models.weight_loader import WeightLoader
from lampo.weights.formats import GGML_TYPES, QuantizedTensor
from lampo.weights.gguf import GGUFFile


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key_value(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor_info(
    name: str, dims: Sequence[int], kind: int = 0, offset: int = 0, num_dims: int | None = None
) -> bytes:
    count = len(dims) if num_dims is None else num_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: int = 256,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32 + data)


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return path


U32 = struct.Struct("<I").pack
ARRAY = struct.Struct("<IQ").pack
HUGE = (1 << 64) - 1


def test_header_values(tmp_path: Path) -> None:
    keys = [
        key_value("u8", 0, b"\xff"),
        key_value("i8", 1, b"\xff"),
        key_value("u16", 2, b"\xff\xff"),
        key_value("i16", 3, b"\xff\xff"),
        key_value("u32", 4, b"\xff" * 4),
        key_value("i32", 5, b"\xff" * 4),
        key_value("f32", 6, struct.pack("<f", 1.5)),
        key_value("bool", 7, b"\1"),
        key_value("string", 8, string("gr\u00fc\u00df")),
        key_value("strings", 9, ARRAY(8, 3) + string("a") + string("") + string("\U0001f600")),
        key_value("u64", 10, b"\xff" * 8),
        key_value("i64", 11, b"\xff" * 8),
        key_value("f64", 12, struct.pack("<d", 2.5)),
        key_value("bools", 9, ARRAY(7, 2) + b"\0\1"),
        key_value("floats", 9, ARRAY(6, 2) + struct.pack("<2f", 1, 2)),
        key_value("none", 9, ARRAY(5, 0)),
    ]
    tensors = [tensor_info("a", [3, 2]), tensor_info("b", [32], 8, 32)]
    for version in (2, 3):
        file = GGUFFile(write(tmp_path, gguf_bytes(keys, tensors, version=version)))
        assert dict(file.metadata) == {
            "u8": 255,
            "i8": -1,
            "u16": 65535,
            "i16": -1,
            "u32": (1 << 32) - 1,
            "i32": -1,
            "f32": 1.5,
            "bool": True,
            "string": "gr\u00fc\u00df",
            "strings": ["a", "", "\U0001f600"],
            "u64": HUGE,
            "i64": -1,
            "f64": 2.5,
            "bools": [False, True],
            "floats": [1.0, 2.0],
            "none": [],
        }
        assert file.shapes() == {"a": (2, 3), "b": (32,)}


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "only 0 bytes"),
    "short": (b"GGUF" + U32(3), "only 8 bytes"),
    "magic": (gguf_bytes(magic=b"GGML"), "starts with b'GGML'"),
    "version 1": (gguf_bytes(version=1), "version 1 is not supported"),
    "version 99": (gguf_bytes(version=99), "version 99"),
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "key count": (gguf_bytes(num_keys=HUGE), "number of keys = 18446744073709551615"),
    "key count one more": (gguf_bytes(num_keys=1, data=0), "number of keys = 1"),
    "tensor count": (gguf_bytes(num_tensors=1 << 60), "number of tensors"),
    "key length": (gguf_bytes([struct.pack("<Q", HUGE)]), "key 0: a string of 1844"),
    "key not UTF-8": (gguf_bytes([key_value(b"\xff", 0, b"\1")]), "not UTF-8"),
    "key twice": (gguf_bytes([key_value("k", 0, b"\1")] * 2), "'k' stands twice"),
    "value type": (gguf_bytes([key_value("k", 13, b"\1")]), "'k': unknown value type 13"),
    "value cut": (gguf_bytes([key_value("key", 4, b"")], data=0)[:42], "'key'.*past the end"),
    "bool": (gguf_bytes([key_value("k", 7, b"\2")]), "'k': a boolean is 2"),
    "string length": (gguf_bytes([key_value("k", 8, b"\xff" * 8)]), "'k': a string of 1844"),
    "string past the end": (
        gguf_bytes([key_value("k", 8, struct.pack("<Q", 300))]),
        "'k': 300 bytes .* past the end",
    ),
    "string not UTF-8": (gguf_bytes([key_value("k", 8, string(b"\xc3("))]), "'k': not UTF-8"),
    "array length": (gguf_bytes([key_value("k", 9, ARRAY(4, HUGE))]), "'k': length = 1844"),
    "array past the end": (gguf_bytes([key_value("k", 9, ARRAY(10, 200))]), "'k': 1600 bytes"),
    "array type": (gguf_bytes([key_value("k", 9, ARRAY(77, 1))]), "'k': unknown value type 77"),
    "array of arrays": (gguf_bytes([key_value("k", 9, ARRAY(9, 1))]), "arrays of arrays"),
    "array of bools": (gguf_bytes([key_value("k", 9, ARRAY(7, 2) + b"\1\7")]), "boolean is 7"),
    "strings length": (gguf_bytes([key_value("k", 9, ARRAY(8, 100))]), "'k': length = 100"),
    "strings past the end": (
        gguf_bytes([key_value("k", 9, ARRAY(8, 2) + string("a") + b"\xff" * 8)]),
        "'k': string 1 runs past the end",
    ),
    "strings not UTF-8": (
        gguf_bytes([key_value("k", 9, ARRAY(8, 2) + string("a") + string(b"\xff"))]),
        "is not UTF-8",
    ),
    "alignment 0": (gguf_bytes([key_value("general.alignment", 4, U32(0))]), "alignment = 0"),
    "alignment 48": (gguf_bytes([key_value("general.alignment", 4, U32(48))]), "power of two"),
    "alignment huge": (gguf_bytes([key_value("general.alignment", 4, U32(1 << 31))]), "alignment"),
    "alignment text": (gguf_bytes([key_value("general.alignment", 8, string("x"))]), "alignment"),
    "tensor name": (gguf_bytes((), [tensor_info("n" * 257, [1])]), "a string of 257 bytes"),
    "tensor twice": (
        gguf_bytes((), [tensor_info("t", [1]), tensor_info("t", [1], 0, 32)]),
        "'t' stands twice",
    ),
    "dims 0": (gguf_bytes((), [tensor_info("t", [1], num_dims=0)]), "0 dimensions"),
    "dims 5": (gguf_bytes((), [tensor_info("t", [1] * 5)]), "5 dimensions"),
    "dims huge": (gguf_bytes((), [tensor_info("t", [1], num_dims=1 << 31)]), "2147483648 dim"),
    "dim of 0": (gguf_bytes((), [tensor_info("t", [0, 4])]), r"dimensions \[0, 4\]"),
    "dims overflow": (gguf_bytes((), [tensor_info("t", [1 << 33, 1 << 33])]), "do not fit"),
    "dims wrap to 0": (gguf_bytes((), [tensor_info("t", [1 << 32, 1 << 32])]), "do not fit"),
    "type": (gguf_bytes((), [tensor_info("t", [32], 9)]), "'t': type 9 is not supported"),
    "type huge": (gguf_bytes((), [tensor_info("t", [32], 1 << 31)]), "type 2147483648"),
    "block size": (gguf_bytes((), [tensor_info("t", [33], 2)]), "rows of 33 .*q4_0"),
    "offset unaligned": (gguf_bytes((), [tensor_info("t", [1], 0, 4)]), "offset 4 is no multiple"),
    "offset past the end": (gguf_bytes((), [tensor_info("t", [1], 0, 256)]), "past the end"),
    "offset huge": (gguf_bytes((), [tensor_info("t", [1], 0, HUGE - 31)]), "past the end"),
    "data cut": (gguf_bytes((), [tensor_info("t", [65])]), "260 bytes .* past the end"),
    "overlap": (
        gguf_bytes((), [tensor_info("a", [16]), tensor_info("b", [8], 0, 32)]),
        "'b' at 128 overlaps tensor 'a'",
    ),
}


def test_headers_longer_than_a_read(tmp_path: Path) -> None:
    """Headers are read piece by piece, and a string or an array may cross the pieces."""
    texts = [b"x" * 700_000, b"", b"y" * 900_000, b"z" * 3_000_000]
    keys = [
        key_value("strings", 9, ARRAY(8, len(texts)) + b"".join(map(string, texts))),
        key_value("floats", 9, ARRAY(12, 600_000) + np.arange(600_000, dtype="<f8").tobytes()),
        key_value("last", 8, string("end")),
    ]
    path = write(tmp_path, gguf_bytes(keys, [tensor_info("a", [3, 2])]))
    file = GGUFFile(path)
    assert file.metadata["strings"] == [text.decode() for text in texts]
    assert file.metadata["floats"] == list(range(600_000))
    assert file.metadata["last"] == "end"
    file.close()
    content = path.read_bytes()
    for length in range(50, len(content) - 500, 1_000_003):
        with pytest.raises(ValueError, match=r"past the end|than a file of"):
            GGUFFile(write(tmp_path, content[:length]))


@pytest.mark.parametrize("name", LIES)
def test_lie_is_refused(name: str, tmp_path: Path) -> None:
    content, reason = LIES[name]
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=reason) as info:
        GGUFFile(path)
    message = str(info.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 400


def _survives(path: Path) -> None:
    """Loads every tensor of a damaged file, or gets the one error that is allowed."""
    try:
        checkpoint = load_checkpoint(path)
    except ValueError:
        return
    with checkpoint:
        for name in checkpoint.names():
            tensor = checkpoint.load(name)
            if isinstance(tensor, QuantizedTensor):
                tensor = tensor.dequantize()
            assert tensor.numel() * 4 <= 64 * checkpoint.nbytes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A path to write to, a whole file, and where its tensors start."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    make_gguf(path, quantization="Q4_0", num_hidden_layers=1, tied=False, rope="llama3")
    header_bytes = min(t.offset for t in GGUFFile(path).header.tensors.values())
    return path, path.read_bytes(), header_bytes


def test_fuzz_truncated(tiny: tuple[Path, bytes, int]) -> None:
    path, content, header_bytes = tiny
    lengths = {*range(0, header_bytes, 97), *range(header_bytes, len(content), 4001)}
    for length in sorted(lengths | {len(content) - 1}):
        path.write_bytes(content[:length])
        if length < len(content) - 32:
            with pytest.raises(ValueError, match="GGUF"):
                load_checkpoint(path)
        else:
            _survives(path)


def test_fuzz_flipped_bytes(tiny: tuple[Path, bytes, int]) -> None:
    path, content, header_bytes = tiny
    rng = random.Random(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(header_bytes)] = rng.choice((0, 1, 127, 128, 255))
        path.write_bytes(damaged)
        _survives(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KiB


def test_fuzz_lying_integers(tiny: tuple[Path, bytes, int]) -> None:
    """Whole 8-byte fields at once: counts, lengths, dimensions, offsets."""
    path, content, header_bytes = tiny
    rng = random.Random(1)
    values = (0, 1, 33, 1 << 16, 1 << 31, 1 << 32, 1 << 40, 1 << 61, 1 << 63, HUGE - 31, HUGE)
    tensor_section = content.rindex(b"rope_freqs.weight") - 8
    for i in range(1000):
        start = rng.randrange(tensor_section if i % 2 else 0, header_bytes - 8)
        damaged = bytearray(content)
        damaged[start : start + 8] = struct.pack("<Q", rng.choice(values))
        path.write_bytes(damaged)
        _survives(path)


@given(body=st.binary(max_size=400))
@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_fuzz_arbitrary_bytes(body: bytes, tmp_path: Path) -> None:
    _survives(write(tmp_path, b"GGUF" + U32(3) + struct.pack("<QQ", 1, 2) + body))


@pytest.mark.parametrize("quantization", [*QUANTIZATIONS, *DEQUANTIZED])
@pytest.mark.parametrize("tied", [True, False])
def test_every_quantization(quantization: str, tied: bool, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "m.gguf"
    model = make_gguf(path, quantization=quantization, tied=tied, num_hidden_layers=1)
    state = model.state_dict()
    with load_checkpoint(path) as checkpoint:
        names = checkpoint.names()
        assert ("lm_head.weight" in names) is not tied
        assert set(state) - set(names) == ({"lm_head.weight"} if tied else set())
        packed = quantization not in ("F32", "F16", "BF16")
        kind = gguf.GGMLQuantizationType[quantization]
        raw = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
        for name in names:
            tensor = checkpoint.load(name)
            original = state[name]
            if original.dim() == 1:
                assert torch.equal(tensor, original)
                continue
            assert isinstance(tensor, QuantizedTensor) == packed
            stored = checkpoint.architecture.tensors(checkpoint.config)[name]
            data = np.array(raw[stored.gguf].data)
            expected = torch.from_numpy(gguf.quants.dequantize(data, kind))
            expected = expected.view(original.shape)
            if isinstance(tensor, QuantizedTensor):
                assert tensor.format == quantization.lower()
                assert tensor.shape == tuple(original.shape)
                assert bytes(tensor.blocks.numpy().tobytes()) == data.tobytes()
                tensor = tensor.dequantize()
            assert torch.equal(tensor.float(), expected)
            if quantization in ("F16", "BF16"):
                assert tensor.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}[quantization]


def test_tensors_have_memory_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_gguf(path, quantization="F32")
    content = path.read_bytes()
    checkpoint = load_checkpoint(path)
    tensor = checkpoint.load("model.norm.weight")
    assert isinstance(tensor, torch.Tensor)
    before = tensor.clone()
    checkpoint.load("model.norm.weight").zero_()
    checkpoint.close()
    checkpoint.close()
    assert torch.equal(tensor, before)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="closed"):
        checkpoint.load("model.norm.weight")


def test_q_and_k_rows_stay_as_stored(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = make_gguf(path, quantization="F32")
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config.layers[0].attention.rope.interleaved
        for part, heads in (("q", 4), ("k", 2)):
            name = f"model.layers.1.self_attn.{part}_proj.weight"
            expected = interleave_rows(model.state_dict()[name].numpy(), heads)
            loaded = checkpoint.load(name)
            assert isinstance(loaded, torch.Tensor)
            assert np.array_equal(loaded.numpy(), expected)


def test_rope_freqs_give_llama3_frequencies(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = make_gguf(path, rope="llama3")
    with load_checkpoint(path) as checkpoint:
        got = checkpoint.config.layers[0].attention.rope.inverse_frequencies().float()
    torch.testing.assert_close(got, model.model.rotary_emb.inv_freq, rtol=2e-6, atol=0)


def test_biases(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = make_gguf(path, attention_bias=True, mlp_bias=True)
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config.layers[0].attention.qkv_bias
        assert checkpoint.config.layers[0].feed_forward.bias
        name = "model.layers.1.mlp.down_proj.bias"
        assert torch.equal(checkpoint.load(name), model.state_dict()[name])  # type: ignore[arg-type]


def test_dequantizing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.gguf"
    make_gguf(path, quantization="IQ2_XS")
    with caplog.at_level(logging.WARNING, "lampo"), load_checkpoint(path) as checkpoint:
        load_model(checkpoint)
    assert caplog.messages == [
        "IQ2_XS: no kernels for it: tensors are dequantized to bfloat16 at load, in 6.9 times the "
        "memory"
    ]


def test_formats_with_kernels(caplog: pytest.LogCaptureFixture) -> None:
    """All with kernels stay packed, in no more memory; others are dequantized, and said so once."""

    class Source:
        def load(self, name: str) -> QuantizedTensor:
            size, nbytes = _C.packed_block_size(name[:-7]), _C.packed_block_bytes(name[:-7])
            blocks = torch.zeros(16, 256 // size * nbytes, dtype=torch.uint8)
            return QuantizedTensor(blocks, name[:-7], (16, 256))

    loader = WeightLoader(Source(), None)
    for format in set(ops.weight_formats()) - set(SAFETENSORS_FORMATS):
        (weight,) = loader.weights([format])
        assert isinstance(weight, ops.PackedWeight) and weight.format == format
        assert weight.nbytes <= 1.07 * 16 * 256 // _C.packed_block_size(
            format
        ) * _C.packed_block_bytes(format)

    class Other:
        def load(self, name: str) -> QuantizedTensor:
            return QuantizedTensor(torch.zeros(16, 66, dtype=torch.uint8), "iq2_xxs", (16, 256))

    loader = WeightLoader(Other(), None)
    with caplog.at_level(logging.WARNING, "lampo"):
        for _ in range(2):
            (weight,) = loader.weights(["w"])
    assert isinstance(weight, torch.Tensor)
    assert len(caplog.messages) == 1


def test_kernels_take_what_files_have() -> None:
    """Every block type of the kernels is one of files, of the same sizes."""
    types = {t.name: t for t in GGML_TYPES.values()}
    for name, sizes in SAFETENSORS_FORMATS.items():
        assert sizes[:2] == (_C.packed_block_size(name), _C.packed_block_bytes(name))
    of_gguf = [name for name in ops.weight_formats() if name not in SAFETENSORS_FORMATS]
    for name in of_gguf:
        assert types[name].block_size == _C.packed_block_size(name)
        assert types[name].block_bytes == _C.packed_block_bytes(name)
    assert {q.lower() for q in QUANTIZATIONS} - {"f32", "f16", "bf16"} == set(of_gguf)


def test_missing_and_wrong_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_gguf(path, left_out=("blk.1.ffn_up.weight",))
    with pytest.raises(ValueError, match=r"tensor blk\.1\.ffn_up\.weight is missing"):
        load_checkpoint(path)
    make_gguf(path, metadata={"llama.feed_forward_length": 97})
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_gate\.weight: expected shape \(97, 64\)"):
        load_checkpoint(path)
    make_gguf(path, metadata={"llama.block_count": 1})
    with pytest.raises(ValueError, match=r"'blk\.1\.[a-z_]+\.weight' has no place"):
        load_checkpoint(path)
    make_gguf(path, metadata={"split.count": 2})
    with pytest.raises(ValueError, match=r"a shard of a split model, expected a name like"):
        load_checkpoint(path)


def split(path: Path, tensors_per_shard: int = 5) -> list[Path]:
    """Splits a GGUF file as gguf-split does, and removes it."""
    import gguf

    reader = gguf.GGUFReader(str(path))
    shards = [
        reader.tensors[i : i + tensors_per_shard]
        for i in range(0, len(reader.tensors), tensors_per_shard)
    ]
    files = []
    for number, tensors in enumerate(shards):
        file = path.with_name(f"{path.stem}-{number + 1:05d}-of-{len(shards):05d}.gguf")
        writer = gguf.GGUFWriter(str(file), "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    kinds = field.types
                    writer.add_key_value(key, field.contents(), kinds[0], *kinds[1:2])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(shards))
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(file)
    path.unlink()
    return files


def test_shards_open_as_one(tmp_path: Path) -> None:
    """By the name of any of them, or of their folder: the tensors of the whole file."""
    path = tmp_path / "m.gguf"
    make_gguf(path, rope="llama3")
    with load_checkpoint(path) as whole:
        expected = {name: whole.load(name) for name in whole.names()}
        config = whole.config
    shards = split(path)
    assert len(shards) == 5
    for place in (shards[0], shards[-1], tmp_path):
        with load_checkpoint(place) as checkpoint:
            assert checkpoint.path == shards[0] and checkpoint.config == config
            assert checkpoint.nbytes == sum(shard.stat().st_size for shard in shards)
            for name, tensor in expected.items():
                found = checkpoint.load(name)
                if isinstance(found, QuantizedTensor):
                    assert isinstance(tensor, QuantizedTensor)
                    found, tensor = found.blocks, tensor.blocks
                assert torch.equal(found, tensor)


def test_shards_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_gguf(path)
    shards = split(path)
    third = shards[2].read_bytes()
    shards[2].unlink()
    with pytest.raises(ValueError, match=r"m-00003-of-00004\.gguf: no such file: shard 3 of 4"):
        load_checkpoint(shards[0])
    shards[2].write_bytes(shards[1].read_bytes())
    with pytest.raises(ValueError, match=r"00003-of-00004\.gguf: split.no: expected 2 by its name"):
        load_checkpoint(tmp_path)
    shards[2].write_bytes(third)
    load_checkpoint(tmp_path).close()
    # A tensor twice: in the shard it belongs to, and under another's name.
    names = [GGUFFile(shard).shapes() for shard in shards]
    twice = next(n for n in names[1] if "blk.0" in n and n.replace("blk.0", "blk.1") in names[2])
    shards[2].write_bytes(third.replace(twice.replace("blk.0", "blk.1").encode(), twice.encode()))
    with pytest.raises(ValueError, match=r"tensors in all shards, got \d+"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
def test_dequantize_random_blocks(quantization: str) -> None:
    """Any bytes, NaN scales too, as the `gguf` package reads them."""
    import gguf

    kind = gguf.GGMLQuantizationType[quantization]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (300, 32 * block_bytes), dtype=np.uint8)
    tensor = QuantizedTensor(torch.from_numpy(data), quantization.lower(), (300, 1024))
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(data, kind))
    torch.testing.assert_close(tensor.dequantize(), expected, rtol=1e-6, atol=0, equal_nan=True)
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    exact = torch.from_numpy(quantized(weight, quantization))
    tensor = QuantizedTensor(exact, quantization.lower(), (8, 64))
    assert (tensor.dequantize() - torch.from_numpy(weight)).abs().max() < 0.5


def test_quantized_tensor_checks_its_arguments() -> None:
    blocks = torch.zeros(4, 36, dtype=torch.uint8)
    assert QuantizedTensor(blocks, "q4_0", (4, 64)).nbytes == 144
    for arguments in (
        (blocks, "q5_0", (4, 64)),
        (blocks, "f16", (4, 9)),
        (blocks, "q9", (4, 64)),
        (blocks, "q4_0", (4, 65)),
        (blocks, "q4_0", (4, 32)),
        (blocks.float(), "q4_0", (4, 64)),
    ):
        with pytest.raises(ValueError, match="expected"):
            QuantizedTensor(*arguments)
