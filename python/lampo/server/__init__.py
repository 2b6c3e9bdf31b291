# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible HTTP server over :class:`lampo.async_llm.AsyncLLM`; see docs/server.md.

A call passes `auth` (who may ask), `limits` (how much), `protocol` (what), an endpoint, and
`generation`, which hands it to the engine.
"""
