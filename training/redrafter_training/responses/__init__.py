# SPDX-License-Identifier: Apache-2.0
"""Response generation: the target answers prompts, and its answers become training data."""
