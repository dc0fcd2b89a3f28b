# SPDX-License-Identifier: Apache-2.0
"""One folder an operation: `reference.py` in plain torch, a kernel beside it where one is needed, one signature."""
