# SPDX-License-Identifier: Apache-2.0
"""What every other package uses and what knows none of them."""
