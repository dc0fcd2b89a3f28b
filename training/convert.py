# SPDX-License-Identifier: Apache-2.0
"""`python -m training.convert SRC DST`: see `redrafter_vllm.convert`, which this is."""

import sys

from redrafter_vllm.convert import convert, main

__all__ = ["convert", "main"]

if __name__ == "__main__":
    sys.exit(main())
