#!/bin/sh
# The Thinker of the published 3B shape against llama.cpp on two threads: makes an environment for it, then measures.
#
#     docs/measurements/against_llamacpp.sh WORKDIR [3b|tiny] | tee docs/measurements/against_llamacpp.txt
#
# Needs .venv with [export], a C++ compiler (llama.cpp is built for this very machine: ten minutes, once), 7 GB in WORKDIR
# and 10 GB of memory; another quarter of an hour on a machine that does nothing else. What is made is kept: run again,
# it only measures. Delete WORKDIR when done.
#
# llama.cpp's code for AMX, which some Xeons have, is left out: as GCC 12 builds it, it crashes there on the first prompt
# (llama.cpp issue 20824, pull request 26954). CMAKE_ARGS in the environment chooses otherwise.
set -eu
work=$1 shape=${2:-3b}
here=$(dirname "$0")
environment=$work/environment
if [ ! -f "$environment/ready" ]; then
    "$here/../../.venv/bin/python" -m venv "$environment"
    no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    CMAKE_ARGS=${CMAKE_ARGS:-"-DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS='$no_amx' -DCMAKE_CXX_FLAGS='$no_amx'"} \
        "$environment/bin/pip" install --quiet --no-cache-dir "llama-cpp-python==0.3.36" "gguf==0.19.0" >&2
    touch "$environment/ready"
fi
echo "$(date -I), $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), llama-cpp-python 0.3.36"
"$here/../../.venv/bin/python" "$here/against_llamacpp.py" measure "$work" "$environment/bin/python" --shape "$shape"
