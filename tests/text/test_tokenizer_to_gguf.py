# SPDX-License-Identifier: Apache-2.0
"""A folder's tokenizer as GGUF metadata encodes, decodes and renders chats as the folder's does."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tiny_tokenizers import CORPUS, SPECIALS, make_backend, save
from tokenizers import AddedToken, pre_tokenizers

from lampo.text.pre_tokenizers import PRE_TOKENIZERS, make_pre_tokenizer
from lampo.text.tokenizer import Tokenizer
from lampo.text.tokenizer_to_gguf import _PROBE, _words, gguf_tokenizer

TEXTS = [*CORPUS[:6], _PROBE, "", " ", "a  b\n\n c", "<|im_end|> in text", "héé 12345"]


@pytest.mark.parametrize("family", ["chatml", "llama3", "mistral", "zephyr", "phi"])
def test_same_tokens(tmp_path: Path, family: str) -> None:
    backend = make_backend(family)
    backend.add_tokens([AddedToken("<custom>", normalized=False)])
    folder = save(backend, family, tmp_path / "m")
    expected = Tokenizer.from_directory(folder)
    size = expected.vocab_size + 3
    ends = (*sorted(expected.eos_token_ids), expected.vocab_size - 2)
    metadata = gguf_tokenizer(folder, size, ends)
    assert len(metadata["tokenizer.ggml.tokens"]) == size
    assert metadata["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    assert metadata["tokenizer.ggml.eot_token_id"] == expected.vocab_size - 2
    found = Tokenizer.from_gguf(metadata)
    for text in TEXTS:
        ids = expected.encode(text)
        assert found.encode(text) == ids, text
        assert found.decode(ids) == expected.decode(ids)
        marked = text + SPECIALS[family][0] + "<custom>x"
        assert found.encode(marked, parse_special=True) == expected.encode(
            marked, parse_special=True
        )
    assert found.bos_token_id == expected.bos_token_id and found.add_bos == expected.add_bos
    assert found.eos_token_ids >= expected.eos_token_ids
    messages = [{"role": "user", "content": "Hi, two  spaces"}]
    assert found.encode_chat(messages) == expected.encode_chat(messages)


def test_the_probe_tells_pre_tokenizers_apart() -> None:
    names = sorted(set(PRE_TOKENIZERS.values()))
    found = {str(_words(make_pre_tokenizer(name))) for name in names}
    assert len(found) == len(names) > 10


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "gpt-4o"])
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_pre_tokenizer(tmp_path: Path, pre: str, ignore_merges: bool) -> None:
    backend = make_backend("chatml")
    backend.pre_tokenizer = make_pre_tokenizer(pre)
    backend.model.ignore_merges = ignore_merges
    folder = save(backend, "chatml", tmp_path / "m")
    if ignore_merges and pre != "llama-bpe":
        with pytest.raises(ValueError, match="pre_tokenizer: it is none that GGUF"):
            gguf_tokenizer(folder, 700, ())
        return
    name = gguf_tokenizer(folder, 700, ())["tokenizer.ggml.pre"]
    assert PRE_TOKENIZERS[name] == pre
    assert (name == pre) == (pre != "llama-bpe" or ignore_merges)


def test_unknown_kinds(tmp_path: Path) -> None:
    backend = make_backend("chatml")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ValueError, match=r"tokenizer.json: pre_tokenizer"):
        gguf_tokenizer(save(backend, "chatml", tmp_path / "a"), 700, ())
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<|im_end|>": 1}, "a"))
    words.decoder = tokenizers.decoders.ByteLevel()
    with pytest.raises(ValueError, match=r"model.type: expected BPE, got WordLevel"):
        gguf_tokenizer(save(words, "chatml", tmp_path / "b"), 2, ())
