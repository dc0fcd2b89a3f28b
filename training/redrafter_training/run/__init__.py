# SPDX-License-Identifier: Apache-2.0
"""The work of the commands: a training from its plan to the exported drafter, evaluation, trimming."""
