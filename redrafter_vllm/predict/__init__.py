# SPDX-License-Identifier: Apache-2.0
"""How fast a target would be with drafts on a GPU that is not there: a cost model in place of a measurement.

Read `docs/predicting.md` first: what goes in, what is left out, and how far predictions were from published figures.
"""
