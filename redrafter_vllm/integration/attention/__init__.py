# SPDX-License-Identifier: Apache-2.0
"""Tree attention as vLLM attention backends: `cpu`, `flash` and `triton`; `select` chooses one.

Each is imported only where it serves: its imports depend on the machine.
"""
