# SPDX-License-Identifier: Apache-2.0
"""The demonstration: train a drafter, serve with it, compare with plain vLLM."""
