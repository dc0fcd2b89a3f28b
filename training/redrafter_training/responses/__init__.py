# SPDX-License-Identifier: Apache-2.0
"""Response generation: the target's responses to prompts, as training data."""
