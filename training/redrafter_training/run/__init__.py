# SPDX-License-Identifier: Apache-2.0
"""One training from its plan to the drafter in its place."""
