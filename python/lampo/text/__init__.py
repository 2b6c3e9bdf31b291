# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, chat templates, structured outputs. Independent of the engine."""
