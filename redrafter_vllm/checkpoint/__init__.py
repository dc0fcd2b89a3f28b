# SPDX-License-Identifier: Apache-2.0
"""Drafter checkpoints: their configuration, files, spellings, and where they are found."""
