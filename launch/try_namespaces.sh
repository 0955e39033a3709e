#!/usr/bin/env bash
# Try launching on one machine: a Ray head with token authentication, two more nodes, each in a network namespace of its
# own, S3 (moto's server) on an address that all reach, and launch/submit.sh. Then the same study once more, and one of the
# nodes is killed amid it. Needs root, iproute2 and the `dev` extra.
#
#   launch/try_namespaces.sh FOLDER
#
# FOLDER gets the study's tables and tiny model, Ray's output and what the commands said. Ends only what it has started.
set -euo pipefail

work=$(realpath "${1:?usage: launch/try_namespaces.sh FOLDER}")
here=$(realpath "$(dirname "$0")/..")
bridge=pitune$$ near=10.77.0.1 far=10.77.0.2 farther=10.77.0.3
bucket="s3://lab/tiny?endpoint_override=$near:9077&scheme=http"
mkdir -p "$work"

export PYTHONPATH=$here RAY_AUTH_MODE=token RAY_TRAIN_V2_ENABLED=1 RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1
export AWS_ACCESS_KEY_ID=me AWS_SECRET_ACCESS_KEY=not-so-secret XDG_STATE_HOME=$work/state
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN RAY_API_SERVER_ADDRESS=http://$near:8277

started=()
finish() {
    for process in "${started[@]}"; do kill "$process" 2>"$work/end" || true; done
    wait
    for space in "$bridge"-{far,farther}; do ip netns del "$space" || true; done
    ip link del "$bridge"
}
trap finish EXIT

list() {
    python -c "
import sys
from pyarrow import fs
s3 = fs.S3FileSystem(endpoint_override='$near:9077', scheme='http')
for one in s3.get_file_info(fs.FileSelector('lab/' + sys.argv[1], recursive=True, allow_not_found=True)): print(one.path)
" "$1"
}

say() { printf '\n## %s\n' "$*"; }

# A node of the cluster: its name, its address. It has a host name of its own, which the packs' logs then tell, and as
# another machine would have, a /tmp/ray of its own: nodes that share one remove each other's working folders.
node() {
    ip netns add "$bridge-$1"
    ip link add "$1$$" type veth peer name eth0 netns "$bridge-$1"
    ip link set "$1$$" master "$bridge" up
    ip -n "$bridge-$1" addr add "$2/24" dev eth0
    ip -n "$bridge-$1" link set eth0 up
    ip -n "$bridge-$1" link set lo up
    ip netns exec "$bridge-$1" unshare --uts bash -c "hostname $1; mount -t tmpfs tmpfs /tmp/ray; exec ray start --block \
        --address $near:6377 --node-ip-address $2 --num-cpus 1 --object-store-memory 100000000" >"$work/$1.log" 2>&1 &
    started+=($!)
    for _ in $(seq 60); do
        if curl --silent --header "Authorization: Bearer $RAY_AUTH_TOKEN" "$RAY_API_SERVER_ADDRESS/nodes?view=summary" |
            grep --quiet "$2"; then return; fi
        sleep 1
    done
    echo "node $1 does not come up; see $work/$1.log" >&2
    exit 1
}

ip link add "$bridge" type bridge
ip addr add $near/24 dev "$bridge"
ip link set "$bridge" up

python -m moto.server -H $near -p 9077 >"$work/s3.log" 2>&1 &
started+=($!)
ray start --head --block --node-ip-address $near --port 6377 --dashboard-host $near --dashboard-port 8277 \
    --num-cpus 1 --object-store-memory 100000000 >"$work/head.log" 2>&1 &
started+=($!)
sleep 20
node far $far
node farther $farther

say "the study"
cat >"$work/make.py" <<END
import sys
from pathlib import Path

from pyarrow import fs

sys.path.append("$here/tests")
from tinystudy import make_study

training = {
    "full": {"steps": 20, "batch_size": 8, "learning_rate": 0.01},
    "few": {"steps": 10, "batch_size": 4, "learning_rate": 0.01},
    "validation_examples": 20,
    "pack_size": 1,
}
targets = {"tasks": ["alpha", "beta"], "shots": [2], "seeds": [0, 1, 2]}
print(make_study(Path("$work"), training=training, targets=targets))
fs.S3FileSystem(endpoint_override="$near:9077", scheme="http", allow_bucket_creation=True).create_dir("lab")
END
python "$work/make.py"

say "who has no token"
curl --silent --output "$work/end" --write-out 'job API: %{http_code}\n' "$RAY_API_SERVER_ADDRESS/api/jobs/"
RAY_AUTH_TOKEN=wrong pitune run "$work/study.yaml" --address $near:6377 || echo "exit code $?"
RAY_AUTH_MODE=disabled pitune run "$work/study.yaml" --address $near:6377 || echo "exit code $?"
RAY_AUTH_MODE=disabled pitune run "$work/study.yaml" || echo "exit code $?"

say "submitting"
"$here/launch/submit.sh" "$work/study.yaml" "$bucket" --set runtime.gangs=3 | tee "$work/submit.log"

say "status"
pitune status "$bucket"
pitune verify "$work/study.yaml" --set "study=$bucket"

say "who trained the packs"
python - <<END
import collections, json, os
from pathlib import Path

from pyarrow import fs

s3 = fs.S3FileSystem(endpoint_override="$near:9077", scheme="http")
found = s3.get_file_info(fs.FileSelector("lab/tiny", recursive=True))
logs = [s3.open_input_file(one.path).read() for one in found if "/logs/" in one.path and one.path.endswith(".jsonl")]
lines = [json.loads(line) for log in logs for line in log.splitlines()]
print(dict(collections.Counter(line["worker"].split(":")[0] for line in lines if line["rows_per_second"] is None)))
print("report:", [one.path for one in found if one.path.endswith("report.html")])
files = [s3.open_input_file(one.path).read() for one in found if one.is_file]
files += [path.read_bytes() for path in Path("$work").glob("*.log")]
secrets = [os.environ[name].encode() for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY")]
print(f"secrets in {sum(any(secret in file for secret in secrets) for file in files)} of {len(files)} files")
END

say "a node dies amid it"
"$here/launch/submit.sh" --detach "$work/study.yaml" "${bucket/tiny/hurt}" --set runtime.gangs=3 | tee "$work/hurt.log"
job=$(sed -n 's/^job \([^:]*\):.*/\1/p' "$work/hurt.log")
for _ in $(seq 240); do
    if grep --quiet "experts/.*manifest" <<<"$(list hurt)"; then break; fi
    sleep 0.5
done
ip netns pids "$bridge-farther" | xargs kill -9
list hurt | grep --count "experts/.*manifest" | sed 's/^/experts by then: /'
ray job logs --follow "$job" | tail -n 5
pitune verify "$work/study.yaml" --set "study=${bucket/tiny/hurt}"
python - <<END
from pitune.store import Store

whole, hurt = (Store("$bucket".replace("tiny", name)).table("results.parquet") for name in ("tiny", "hurt"))
print("tables equal:", whole.drop_columns("seconds").equals(hurt.drop_columns("seconds")))
END

say "stopping another one"
"$here/launch/submit.sh" --detach "$work/study.yaml" "${bucket/tiny/other}" --set runtime.gangs=3 | tee "$work/detached.log"
job=$(sed -n 's/^job \([^:]*\):.*/\1/p' "$work/detached.log")
sleep 30
ray job status "$job"
ray job stop "$job"
ray job logs "$job" | tail -n 5
pitune status "${bucket/tiny/other}"
