# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM that the plugin rebinds."""
