# SPDX-License-Identifier: Apache-2.0
"""Load for a model that serves many at once: what to send, where to, and what came of it."""
