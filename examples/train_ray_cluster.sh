#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A drafter trained on a Ray cluster: examples/train_ray_cluster.sh WORKERS SHARED [MODEL [DATA [OPTION ...]]]
#
# Run it on one node of the cluster. WORKERS processes, one for each GPU (without GPUs for each CPU), share the rows of a
# step; SHARED is a folder that all nodes reach, and so must be MODEL and DATA if they are folders. The cluster:
#
#     ray start --head --port 6379                # on the first node
#     ray start --address FIRST-NODE:6379         # on each of the others
#
# Two nodes on one machine, to try it: both commands there, with --num-cpus 1.
set -euo pipefail
workers=${1:?the number of workers}
shared=${2:?a folder that all nodes reach}
model=${3:-tests/assets/stdlib-llama}
data=${4:-stdlib}

redrafter train --target "$model" --data "$data" --recipe short \
    --ray-address "${RAY_ADDRESS:-auto}" --num-workers "$workers" \
    --out "$shared/drafter" --run-dir "$shared/run" "${@:5}"
