# SPDX-License-Identifier: Apache-2.0
"""Plain decoding beside ReDrafter on the same prompt: measured, shown in a terminal, exported as a picture."""
