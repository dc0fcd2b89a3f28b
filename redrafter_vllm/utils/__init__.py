# SPDX-License-Identifier: Apache-2.0
"""Paths, messages and JSON: what every other package uses and what knows none of them."""
