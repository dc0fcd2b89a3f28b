# SPDX-License-Identifier: Apache-2.0
"""Everything that uses vLLM's insides, in folders by the process of vLLM that runs it.

`frontend`, `scheduler` (the engine core) and `worker`, with `attention` in it; `patches` puts functions of these into
vLLM's place. Files directly in this folder are used by several processes. docs/design/vllm_interface.md lists all names
of vLLM that are used.
"""
