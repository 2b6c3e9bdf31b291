# SPDX-License-Identifier: Apache-2.0
"""Quantized safetensors: a file for each method of config.json's quantization_config."""
