# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back: tokenizers, chat templates, structured outputs. Knows no engine."""
