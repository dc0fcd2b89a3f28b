# SPDX-License-Identifier: Apache-2.0
"""The drafter network, and the forms in which it serves: packed, sharded over ranks, quantised."""
