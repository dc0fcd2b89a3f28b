# SPDX-License-Identifier: Apache-2.0
"""Training of drafters by distillation, and of a small target to try them on.

Imports go one way; a folder imports only from those before it:

    utils, config, distributed, target, data, hidden_states, trainer, responses, run

The modules beside the folders, and `tiny_target`, are commands: they import from all folders, and nothing imports them
except `cli`, which the commands share, and `pipeline`, which runs the others.
"""
