#!/usr/bin/env bash
# Run a study as a job of a running Ray cluster, and follow its output, or not. Tried against a head with token
# authentication and two more nodes in network namespaces of their own (try_namespaces.sh); never against several machines.
#
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 launch/submit.sh configs/quickstart.yaml /shared/studies/quickstart
#   … launch/submit.sh --detach configs/quickstart.yaml s3://bucket/quickstart --set runtime.gangs=8
#
# CONFIG is a file here, and all that travels: tables and models of your own that it names lie at paths which every machine
# reaches, or in a bucket. STUDY is a folder that every machine reaches at this path, or a bucket's. Further arguments go to
# `pitune run`. The cluster's machines have pitune installed (cluster/Dockerfile), and their own
# credentials. The token that the cluster wants is taken from RAY_AUTH_TOKEN, or from ~/.ray/auth_token.
set -euo pipefail

detach=()
if [[ ${1:-} == --detach ]]; then
    detach=(--no-wait)
    shift
fi
if (($# < 2)); then
    echo "usage: launch/submit.sh [--detach] CONFIG STUDY [more of pitune run, such as --set training.few.steps=30]" >&2
    exit 2
fi
config=$1 study=$2
shift 2
if [[ ! -f $config ]]; then
    echo "launch/submit.sh: $config: no such file; give a study's YAML, such as configs/quickstart.yaml" >&2
    exit 2
fi
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}

place=${study%%\?*} # without a bucket's options
job=$(basename "$place" | tr -c '[:alnum:]\n' -)-$(date -u +%Y%m%d-%H%M%S)
echo "job $job: ray job status $job | ray job logs --follow $job | ray job stop $job"
echo "its report will be $place/report.html"

# Only the study's YAML travels: it is the whole working folder of the job.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$config" "$work/study.yaml"
ray job submit --submission-id "$job" --working-dir "$work" "${detach[@]}" \
    -- pitune run study.yaml --set "study=$study" --address auto "$@"
