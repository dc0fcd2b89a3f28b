# SPDX-License-Identifier: Apache-2.0
"""The command `redrafter`: its subcommands, completion in a shell, and a report on the machine."""
