# SPDX-License-Identifier: Apache-2.0
"""All checks that need a GPU: `python -m benchmarks.gpu_check`."""
