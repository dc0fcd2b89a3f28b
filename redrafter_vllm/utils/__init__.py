# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, paths, messages and JSON: imports no other package of the project."""
