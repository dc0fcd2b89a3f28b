# SPDX-License-Identifier: Apache-2.0
"""How far `redrafter predict`'s cost model is from figures that others have published."""
