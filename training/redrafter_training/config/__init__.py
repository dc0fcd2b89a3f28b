# SPDX-License-Identifier: Apache-2.0
"""Options of a training: recipe (shape, loss, schedule) and job (target, data, machines, files)."""
