# SPDX-License-Identifier: Apache-2.0
"""Drafter checkpoints: their configuration, files, tensor names, and where they are found and written."""
