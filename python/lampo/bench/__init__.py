# SPDX-License-Identifier: Apache-2.0
"""Measurements: ops and models beside peers and the machine's limits, and load tests."""
