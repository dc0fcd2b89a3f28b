# SPDX-License-Identifier: Apache-2.0
"""The frozen target: its hidden states, LM head, limits, and how it is loaded."""
