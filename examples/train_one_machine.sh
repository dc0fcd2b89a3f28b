#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A drafter trained on this machine: examples/train_one_machine.sh [MODEL [DATA [OPTION ...]]]
#
# DATA is a file of conversations, a data set's name, or `stdlib`, the sources of Python's standard library. The defaults
# take about three minutes on two cores; a large model wants the standard recipe: --recipe standard. The drafter goes where
# `vllm serve MODEL --speculative-model redrafter` finds it, or to --out DIR.
set -euo pipefail
model=${1:-tests/assets/stdlib-llama}
data=${2:-stdlib}

redrafter train --target "$model" --data "$data" --recipe short "${@:3}"
