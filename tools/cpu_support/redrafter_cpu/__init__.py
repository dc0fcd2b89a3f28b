# SPDX-License-Identifier: Apache-2.0
"""CPU support: an interpreted Triton backend and vectorised stand-ins for vLLM's hot kernels.

Triton imports this package while it is itself half imported, so nothing is imported here.
"""
