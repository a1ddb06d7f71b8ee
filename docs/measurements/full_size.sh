#!/bin/sh
# Export a checkpoint of the published size (random weights), answer from it on the CPU, verify it: time, peak memory.
#
#     docs/measurements/full_size.sh 3b WORKDIR      (needs GNU time, .venv with [test], and 20 GB for 3b, 40 GB for 7b)
set -eu
size=$1 work=$2
checkpoint=$work/full-$size bundle=$work/full-$size-int4
bin=$(dirname "$0")/../../.venv/bin
[ -d "$checkpoint" ] || "$bin/python" "$(dirname "$0")/full_size_checkpoint.py" "$size" "$checkpoint"
echo "== nearfield export, $size: checkpoint of $(du -sh "$checkpoint" | cut -f1)"
/usr/bin/time -f "%e s, %U s of CPU, peak memory %M kB" "$bin/nearfield" export "$checkpoint" -o "$bundle" --overwrite
"$bin/nearfield" inspect "$bundle"
echo "== nearfield ask, text of 5 tokens, 1 s of speech"
/usr/bin/time -f "%e s with loading, peak memory %M kB" \
    "$bin/nearfield" ask "$bundle" --text Hello --max-tokens 5 --max-seconds 1 --out "$work/reply.wav"
echo "== nearfield verify"
/usr/bin/time -f "%e s, peak memory %M kB" "$bin/nearfield" verify "$bundle" --against "$checkpoint"
