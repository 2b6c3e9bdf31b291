# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible HTTP server over :class:`lampo.async_llm.AsyncLLM`; see docs/server.md.

A call passes `auth` (keys, hosts), `limits` (sizes, counts), `protocol` (fields), an endpoint, and
`generation`, which submits it to the engine.
"""
