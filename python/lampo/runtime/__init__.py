# SPDX-License-Identifier: Apache-2.0
"""Devices, recorded programs and memory: what lies under a model besides its ops."""
