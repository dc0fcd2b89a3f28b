#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A drafter of another layout, for serving: examples/convert_checkpoint.sh SRC DST [OPTION ...]
#
# SRC has the tensors of TensorRT-LLM's or Apple's ReDrafter under any of their names, alone or inside the target's
# checkpoint. Weights in pickles (*.bin, *.pt, *.pth) are read with --allow-pickle only.
set -euo pipefail
source=${1:?a folder with a drafter}
destination=${2:?a new folder}

redrafter convert "$source" "$destination" "${@:3}"
redrafter inspect "$destination" # sizes, bytes that a round reads, and whether a target fits: --target MODEL
