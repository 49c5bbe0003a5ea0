#!/usr/bin/env bash
# One machine, several processes: launch/torchrun.sh NPROC RUN CONFIG DATA... [-- more scfm options]
#   launch/torchrun.sh 8 runs/big scfm-100m store -- --set train.strategy=fsdp
# Decides where the run happens, never what it computes: the batch is dealt to the processes.
# Go on with a run that was stopped or killed: the same line with -- --resume.
set -euo pipefail
[ $# -ge 4 ] || { sed -n 2,5p "$0" >&2; exit 2; }
nproc=$1 run=$2 config=$3
shift 3
data=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do data+=(--data "$1"); shift; done
[ $# -gt 0 ] && shift

cores=$(nproc)
# torchrun's own would be one thread, SIGUSR1 a crash, and half a minute to write a checkpoint
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > nproc ? cores / nproc : 1))}
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec torchrun --standalone --nproc-per-node "$nproc" -m scfm.cli pretrain \
    --out "$run" --config "$config" "${data[@]}" "$@"
