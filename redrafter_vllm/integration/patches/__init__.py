# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM that the plugin rebinds: the target, why, and when the patch can go.

All were written for vLLM >=0.32,<0.34, and all do what vLLM does unless the method is ReDrafter.
"""
