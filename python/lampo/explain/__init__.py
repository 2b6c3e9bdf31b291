# SPDX-License-Identifier: Apache-2.0
"""Explanations: a real run of decoding, recorded and drawn."""

# Parameters of the draw that a page computes itself.
PARAMETERS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos")
