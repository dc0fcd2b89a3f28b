# SPDX-License-Identifier: Apache-2.0
"""The training loop with loss, optimizer, schedule, metrics, state and export."""
