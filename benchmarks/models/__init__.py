# SPDX-License-Identifier: Apache-2.0
"""Sizes of models, the bytes that they read, and small models inflated to large shapes."""
