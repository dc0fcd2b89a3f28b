# SPDX-License-Identifier: Apache-2.0
"""The target's hidden states, computed once and stored on disk."""
