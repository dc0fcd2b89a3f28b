# SPDX-License-Identifier: Apache-2.0
"""The pictures of `docs/assets`, each made by running what it shows: `python -m tools.pictures`."""
