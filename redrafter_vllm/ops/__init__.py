# SPDX-License-Identifier: Apache-2.0
"""One folder per op: `reference.py` in plain torch and `kernel.py` in Triton, with the same signatures."""
