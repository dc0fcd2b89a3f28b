# SPDX-License-Identifier: Apache-2.0
"""Tokens per step on chat prompts: ReDrafter, served and simulated, against what vLLM offers without a drafter."""
