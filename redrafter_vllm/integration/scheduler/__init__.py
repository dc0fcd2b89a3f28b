# SPDX-License-Identifier: Apache-2.0
"""What runs in vLLM's engine core, beside its scheduler."""
