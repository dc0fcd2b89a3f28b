# SPDX-License-Identifier: Apache-2.0
"""What runs in vLLM's workers, around the target's forward pass."""
