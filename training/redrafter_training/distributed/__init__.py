# SPDX-License-Identifier: Apache-2.0
"""Processes: what the loop knows of them, their checkpoints, and Ray Train."""
