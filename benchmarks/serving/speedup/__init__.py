# SPDX-License-Identifier: Apache-2.0
"""ReDrafter against vLLM as its users run it, in turns."""
