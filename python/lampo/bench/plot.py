# SPDX-License-Identifier: Apache-2.0
"""x"""

from typing import Any


def plot(document: dict[str, Any]) -> str:
    return ""
