# SPDX-License-Identifier: Apache-2.0
"""Makers of tiny tokenizers, as Hugging Face folders and as GGUF metadata, and chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "def decode(token_ids):\n    return ''.join(pieces[i] for i in token_ids)\n",
    "Bytes, tokens and characters: 0123456789, 3.14159, 2026. Naïve café, straße, ñandú.",
    "In un lampo! Perché no? Ελληνικά, русский, 日本語, 한국어, العربية, हिन्दी, 🙂👍🏽👨‍👩‍👧.",
    "    four spaces\n\n\ttab  two   three    four     five\r\n",
    "<b>bold</b> & <i>italic</i> [link](http://a.b/c?d=e|f) {'x': [1, 2]}",
] * 3
SPECIALS = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "mistral": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
    "zephyr": ["<unk>", "<s>", "</s>"],
    "phi": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
    "granite": ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"],
    "olmo": ["<|endoftext|>"],
    "ministral": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"],
}
BOS = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "zephyr": "<s>"}
BOS |= {"gemma": "<bos>", "ministral": "<s>"}
EOS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "zephyr": "</s>",
    "phi": "<|end|>",
    "gemma": "<end_of_turn>",
    "granite": "<|end_of_text|>",
    "olmo": "<|endoftext|>",
    "ministral": "</s>",
}
TEMPLATES = {
    "chatml": """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + "\\n" }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last_user %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' ~ call.function.name ~ call.function.arguments | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "llama3": """\
{{- bos_token }}
{%- set date = date_string if date_string is defined else 'today' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nDate: ' + date + '\\n\\n' }}
{{- system + '<|eot_id|>' }}
{% for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] | trim }}{{ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """\
{{ bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    "phi": """\
{% for message in messages %}\
{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
    "gemma": """\
{{ bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 is even) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' ~ role ~ '\\n' ~ message.content | trim ~ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "granite": """\
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' ~ tools | tojson(indent=4) ~ eos_token ~ '\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_of_role|>' ~ message.role ~ '<|end_of_role|>' ~ message.content ~ eos_token }}
    {{- '\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if thinking %}{{- ' {"thinking": true}' }}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}""",
    "olmo": """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>\\n' ~ message.content ~ eos_token }}
        {%- if not loop.last %}{{ '\\n' }}{% endif %}
    {%- else %}
        {{- '<|' ~ message.role ~ '|>\\n' ~ message.content ~ '\\n' }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{%- endfor %}""",
    "ministral": """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST]' ~ message.content ~ '[/INST]' }}
    {%- else %}
        {{- message.content ~ eos_token }}
    {%- endif %}
{%- endfor %}""",
}


def byte_level_backend(family: str) -> Tokenizer:
    """A byte-level BPE tokenizer in Hugging Face's form."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIALS[family]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if family in BOS:
        bos = BOS[family]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


def sentencepiece_backend(family: str) -> Tokenizer:
    """A SentencePiece-like BPE tokenizer in Hugging Face's form: spaces are U+2581."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    names = [*SPECIALS[family], *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted(state["vocab"], key=state["vocab"].get)
    backend = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[tuple(pair) for pair in state["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIALS[family]]
    )
    bos = BOS[family]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


def make_backend(family: str) -> Tokenizer:
    return (
        sentencepiece_backend(family)
        if family in ("mistral", "zephyr")
        else byte_level_backend(family)
    )


def save(backend: Tokenizer, family: str, folder: Path, **config: Any) -> Path:
    """Writes a model folder with tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"eos_token": EOS[family]}
    if family in BOS:
        named["bos_token"] = BOS[family]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(named | {"chat_template": TEMPLATES[family]} | config)
    )
    return folder


def gguf_metadata(backend: Tokenizer, family: str, pre: str = "gpt-2") -> dict[str, Any]:
    """The same tokenizer as a GGUF file's metadata."""
    vocab = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=lambda name: vocab[name])
    special = set(SPECIALS[family])
    sentencepiece = family in ("mistral", "zephyr")
    types = [3 if token in special else 1 for token in tokens]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if sentencepiece else "gpt2",
        "tokenizer.ggml.pre": "default" if sentencepiece else pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.eos_token_id": vocab[EOS[family]],
        "tokenizer.chat_template": TEMPLATES[family],
    }
    if family in BOS:
        metadata["tokenizer.ggml.bos_token_id"] = vocab[BOS[family]]
        metadata["tokenizer.ggml.add_bos_token"] = True
    if sentencepiece:
        metadata["tokenizer.ggml.unknown_token_id"] = vocab["<unk>"]
        types[vocab["<unk>"]] = 2
        for token in tokens:
            if token.startswith("<0x"):
                types[vocab[token]] = 6
        metadata["tokenizer.ggml.scores"] = [-float(i) for i in range(len(tokens))]
    else:
        merges = json.loads(backend.to_str())["model"]["merges"]
        metadata["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    return metadata
