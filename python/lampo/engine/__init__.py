# SPDX-License-Identifier: Apache-2.0
"""From requests to steps: the KV pool, sequences, the model runner and the loop."""
