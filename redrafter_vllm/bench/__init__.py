# SPDX-License-Identifier: Apache-2.0
"""Measurements on engines in processes of their own, which take turns: `redrafter bench`, and parts for benchmarks/."""
