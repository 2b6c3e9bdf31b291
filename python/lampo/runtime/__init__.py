# SPDX-License-Identifier: Apache-2.0
"""Devices, recorded programs and memory."""
