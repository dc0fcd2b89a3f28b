# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_vllm`: the command `redrafter`."""

import sys

from redrafter_vllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
