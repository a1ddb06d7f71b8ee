#!/bin/sh
# `make bench` with nano and with a random INT4 bundle of the published 3B shape, which is made first.
#
#     docs/measurements/first_sound.sh WORKDIR [REPEATS]      (needs .venv with [test], 17 GB in WORKDIR, 12 GB of memory)
#
# Once there is a bundle, `make bench BUNDLES="nano WORKDIR/random-3b-int4"` does the same.
# On two cores about an hour with 5 repeats, most of it the larger bundle's. Run again after an interruption, it goes on
# where it was: what is made is kept, the bundle (7 GB) for good, the checkpoint until there is a bundle, and what was
# measured of a bundle in WORKDIR/first_sound-*.txt. Delete WORKDIR when done.
set -eu
work=$1 repeats=${2:-5}
here=$(dirname "$0")
bin=$here/../../.venv/bin
checkpoint=$work/random-3b bundle=$work/random-3b-int4
mkdir -p "$work"
if [ ! -d "$bundle" ]; then
    if [ ! -d "$checkpoint" ]; then
        rm -rf "$checkpoint.part"
        "$bin/python" "$here/full_size_checkpoint.py" 3b "$checkpoint.part"
        mv "$checkpoint.part" "$checkpoint"
    fi
    "$bin/nearfield" export "$checkpoint" -o "$bundle"
fi
rm -rf "$checkpoint"
for name in nano "$bundle"; do
    measured=$work/first_sound-$(basename "$name").txt
    if [ ! -f "$measured" ]; then
        # A ratio that was missed is a result too; what broke off lacks the last line.
        "$bin/python" -m nearfield.apps.bench "$name" --repeats "$repeats" >"$measured.part" || true
        grep -q "work for a second of speech" "$measured.part"
        mv "$measured.part" "$measured"
    fi
    cat "$measured"
done
