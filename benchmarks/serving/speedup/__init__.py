# SPDX-License-Identifier: Apache-2.0
"""ReDrafter against vLLM as installed, in turns."""
