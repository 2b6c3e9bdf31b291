# SPDX-License-Identifier: Apache-2.0
"""Load for a model that serves many at once: its calls, its targets, and its results."""
