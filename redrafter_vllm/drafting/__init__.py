# SPDX-License-Identifier: Apache-2.0
"""One drafting round and one verification, without vLLM: beams, trees, buffers, the walk."""
