# SPDX-License-Identifier: Apache-2.0
"""Measurements of the whole: what serving with ReDrafter gives, against plain vLLM in the same run."""
