#!/usr/bin/env bash
# A build on a Ray cluster that is there already:
#
#     HEAD=10.0.0.1 pipelines/cluster/submit.sh s3://BUCKET/shards s3://BUCKET/reinforced mobileclip
#
# More options of `reinforce build` may follow. This shows what the driver prints; Ctrl-C leaves the build running, and
# `ray job stop ID` ends it as Ctrl-C would. The same command goes on with what is missing.
set -euo pipefail

shards=${1:?usage: submit.sh SHARDS OUTPUT RECIPE [OPTION...]}
output=${2:?usage: submit.sh SHARDS OUTPUT RECIPE [OPTION...]}
recipe=${3:?usage: submit.sh SHARDS OUTPUT RECIPE [OPTION...]}
shift 3

# No --runtime-env with keys in it: Ray logs those variables. The driver uses what the head node has.
exec ray job submit --address "http://${HEAD:-127.0.0.1}:8265" -- \
    reinforce build --shards "$shards" --output "$output" --recipe "$recipe" --ray auto "$@"
