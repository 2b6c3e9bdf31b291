# SPDX-License-Identifier: Apache-2.0
"""Load tests of a model: calls, targets and results."""
