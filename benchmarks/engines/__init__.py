# SPDX-License-Identifier: Apache-2.0
"""vLLM engines in processes of their own: the kinds compared, and what `LLM.generate` emitted and counted."""
