# SPDX-License-Identifier: Apache-2.0
"""Sizes of models, their bytes, and small models at the cost of large ones."""
