# SPDX-License-Identifier: Apache-2.0
"""Training data: from records to batches of tokens."""
