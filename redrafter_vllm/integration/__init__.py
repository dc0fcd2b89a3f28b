# SPDX-License-Identifier: Apache-2.0
"""The vLLM seam: everything that leans on vLLM's insides, listed in docs/design/vllm_interface.md."""
