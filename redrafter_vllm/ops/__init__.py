# SPDX-License-Identifier: Apache-2.0
"""One folder per op: `reference.py` in plain torch and `kernel.py` in Triton, with the same signatures.

What takes a step's time on a CPU has a third form, `native.cpp` with `native.py`, which launches it.
"""
