# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM that this package uses, by the process that uses it; `names.VLLM_NAMES` is the whole list.

Rebindings take the parameters that they check from here; `check` compares the list with the sources of any
version of vLLM. docs/design/vllm_interface.md has every entry, and why each rebinding is needed.
"""
