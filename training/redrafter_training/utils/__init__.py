# SPDX-License-Identifier: Apache-2.0
"""Helpers that do not depend on other packages of the training."""
