# SPDX-License-Identifier: Apache-2.0
"""Code that runs in vLLM's workers, around the target's forward pass."""
