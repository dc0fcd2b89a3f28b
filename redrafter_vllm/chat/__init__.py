# SPDX-License-Identifier: Apache-2.0
"""A conversation in a terminal with a server of vLLM, accepted drafts in colour."""
