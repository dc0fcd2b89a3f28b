# SPDX-License-Identifier: Apache-2.0
"""The demonstration: serve a chat model with a drafter, compare with plain vLLM, measure both."""
