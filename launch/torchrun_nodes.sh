#!/usr/bin/env bash
# Several machines, the same line on each:
#   launch/torchrun_nodes.sh NODES NPROC HOST:PORT RUN CONFIG DATA... [-- more scfm options]
#   launch/torchrun_nodes.sh 4 8 node0:29500 /shared/runs/big scfm-400m /shared/store
# HOST is one of the machines. RUN and DATA lie where all see them. Begins the run, or goes on with it.
set -euo pipefail
[ $# -ge 6 ] || { sed -n 2,5p "$0" >&2; exit 2; }
nodes=$1 nproc=$2 endpoint=$3 run=$4 config=$5
shift 5
data=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do data+=(--data "$1"); shift; done
[ $# -gt 0 ] && shift

cores=$(nproc)
# torchrun's own would be one thread, SIGUSR1 a crash, and half a minute to write a checkpoint
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > nproc ? cores / nproc : 1))}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec torchrun --nnodes "$nodes" --nproc-per-node "$nproc" --max-restarts 0 \
    --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "$(basename "$run")" \
    -m scfm.cli pretrain --out "$run" --config "$config" "${data[@]}" --resume "$@"
