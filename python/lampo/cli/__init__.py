# SPDX-License-Identifier: Apache-2.0
"""The command line: generate, chat, doctor, pull. Help and argument errors never load torch."""
