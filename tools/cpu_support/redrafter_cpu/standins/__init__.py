# SPDX-License-Identifier: Apache-2.0
"""Vectorised stand-ins, one module for each vLLM module whose kernels they replace."""
