# SPDX-License-Identifier: Apache-2.0
"""The error of this package."""


class PictureError(Exception):
    """A picture cannot be made; the message says why and what to do."""
