# SPDX-License-Identifier: Apache-2.0
"""Training of drafters by distillation, and of a small target to try them on."""
