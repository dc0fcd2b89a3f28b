# SPDX-License-Identifier: Apache-2.0
"""The training loop: loss, optimizer, schedule, metrics, state, export."""
