# SPDX-License-Identifier: Apache-2.0
"""Model architectures, as stacks of ops."""
