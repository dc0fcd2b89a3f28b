#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two replicas behind one address: examples/two_replicas.sh [MODEL [OPTION ...]]
#
# vLLM starts an engine for each replica, on a GPU of its own, each with its own drafter, and sends a request to the one
# with fewer requests. More options are those of `vllm serve`, for example --port 9000 --speculative-model DRAFTER.
set -euo pipefail
model=${1:-tests/assets/stdlib-llama}

# Without a GPU the two engines would be bound to the cores and, from vLLM 0.33 on, the memory of different NUMA nodes,
# which a small machine has not got.
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export CPU_VISIBLE_MEMORY_NODES=${CPU_VISIBLE_MEMORY_NODES:-0,0}

exec vllm serve "$model" --speculative-model redrafter --data-parallel-size 2 "${@:2}"
