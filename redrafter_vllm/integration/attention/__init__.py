# SPDX-License-Identifier: Apache-2.0
"""Tree attention as vLLM attention backends: `cpu`, `flash` and `triton`; `select` chooses among them.

Imported lazily: what the backends import depends on the machine.
"""
