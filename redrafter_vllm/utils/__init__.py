# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, paths, messages, JSON and huge pages: imports no other package of the project."""
