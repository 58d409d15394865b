#!/bin/sh
# Starts LMDeploy for a model folder as `lensmith plan serve` says, on the GPUs that the container sees.
#
#   LENSMITH_MODEL_DIR    the folder (default: /model)
#   LENSMITH_MODEL_NAME   name that the gateway asks for (default: model)
#   LENSMITH_ENGINE_KEY   key that the gateway must show (required)
#   LENSMITH_GPU          card to plan for, such as t4 (default: what nvidia-smi says)
#   LENSMITH_TP           GPUs that share the model (default: 1)
#   LENSMITH_RAY          1: on several machines; this one is the head of a Ray cluster
#   OMP_NUM_THREADS       threads of the image processor (default: 4; more of them slow the engine's loop down)
# Arguments are passed on to LMDeploy and win over the plan's.
set -eu
: "${LENSMITH_ENGINE_KEY:?set it to the key that the gateway shows}"
model=${LENSMITH_MODEL_DIR:-/model}
tp=${LENSMITH_TP:-1}
plan() { lensmith plan serve "$model" --tp "$tp" ${LENSMITH_GPU:+--gpu "$LENSMITH_GPU"} "$@"; }
if ! planned=$(plan --json); then
  plan
  exit 1
fi
flags=$(echo "$planned" | python3 -c 'import json, sys; print(*json.load(sys.stdin)["arguments"])')
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
export MKL_NUM_THREADS="$OMP_NUM_THREADS"
if [ "${LENSMITH_RAY:-0}" = 1 ]; then
  ray start --head --port=6379
  export RAY_ADDRESS=127.0.0.1:6379
  flags="$flags --distributed-executor-backend ray"
fi
# shellcheck disable=SC2086 # the flags are words, none with a space in it
exec lmdeploy serve api_server "$model" --server-name 0.0.0.0 --server-port 23333 \
  --model-name "${LENSMITH_MODEL_NAME:-model}" --api-keys "$LENSMITH_ENGINE_KEY" $flags "$@"
