# SPDX-License-Identifier: Apache-2.0
"""The frozen target: hidden states, LM head, limits, loading."""
