# SPDX-License-Identifier: Apache-2.0
"""Processes of a training: the interface to them, their checkpoints, and Ray Train."""
