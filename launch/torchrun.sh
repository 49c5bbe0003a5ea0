#!/usr/bin/env bash
# One node, several processes: launch/torchrun.sh NPROC RUN CONFIG DATA... [-- extra scfm options]
#   launch/torchrun.sh 8 runs/big scfm-100m atlas.h5ad -- --set loader.batch_size=2048
# Decides where the run happens, never what it computes: the batch is dealt to the processes.
set -euo pipefail
[ $# -ge 4 ] || { sed -n 2,4p "$0"; exit 2; }
nproc=$1 run=$2 config=$3
shift 3
data=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do data+=(--data "$1"); shift; done
[ $# -gt 0 ] && shift
exec torchrun --standalone --nproc-per-node "$nproc" -m scfm.cli pretrain \
    --out "$run" --config "$config" "${data[@]}" \
    --set train.strategy=ddp --set "train.devices=$nproc" "$@"
