# SPDX-License-Identifier: Apache-2.0
"""Trees as large as they pay: what a node will bring, what a row costs, and the budget of a step that follows."""
