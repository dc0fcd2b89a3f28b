# SPDX-License-Identifier: Apache-2.0
"""Code that runs in vLLM's engine core, around its scheduler."""
