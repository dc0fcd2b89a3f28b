# SPDX-License-Identifier: Apache-2.0
"""Looking into a drafter: facts about its checkpoint, and the trees that it draws for a prompt."""
