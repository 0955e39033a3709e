#!/usr/bin/env bash
# Try launching on one machine: a Ray head with token authentication, a second node in a network namespace of its own, S3
# (moto's server) on an address that both reach, and launch/submit.sh. Needs root, iproute2 and the `dev` extra.
#
#   launch/try_namespaces.sh FOLDER
#
# FOLDER gets the study's tables and tiny model, Ray's output and what the commands said. Ends only what it has started.
set -euo pipefail

work=$(realpath "${1:?usage: launch/try_namespaces.sh FOLDER}")
here=$(realpath "$(dirname "$0")/..")
space=pitune-$$ near=10.77.0.1 far=10.77.0.2
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
    ip netns del "$space"
}
trap finish EXIT

say() { printf '\n## %s\n' "$*"; }

ip netns add "$space"
ip link add "$space"a type veth peer name "$space"b netns "$space"
ip addr add $near/24 dev "$space"a
ip link set "$space"a up
ip -n "$space" addr add $far/24 dev "$space"b
ip -n "$space" link set "$space"b up
ip -n "$space" link set lo up

python -m moto.server -H $near -p 9077 >"$work/s3.log" 2>&1 &
started+=($!)
ray start --head --block --node-ip-address $near --port 6377 --dashboard-host $near --dashboard-port 8277 \
    --num-cpus 1 --object-store-memory 100000000 >"$work/head.log" 2>&1 &
started+=($!)
sleep 20
# With a host name of its own, which the packs' logs then tell.
ip netns exec "$space" unshare --uts bash -c "hostname far; exec ray start --block --address $near:6377 \
    --node-ip-address $far --num-cpus 1 --object-store-memory 100000000" >"$work/far.log" 2>&1 &
started+=($!)

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
for _ in $(seq 60); do
    if curl --silent --fail --header "Authorization: Bearer $RAY_AUTH_TOKEN" "$RAY_API_SERVER_ADDRESS/nodes?view=summary" |
        grep --quiet "$far"; then break; fi
    sleep 2
done

say "who has no token"
curl --silent --output "$work/end" --write-out 'job API: %{http_code}\n' "$RAY_API_SERVER_ADDRESS/api/jobs/"
RAY_AUTH_TOKEN=wrong pitune run "$work/study.yaml" --address $near:6377 || echo "exit code $?"
RAY_AUTH_MODE=disabled pitune run "$work/study.yaml" --address $near:6377 || echo "exit code $?"
RAY_AUTH_MODE=disabled pitune run "$work/study.yaml" || echo "exit code $?"

say "submitting"
"$here/launch/submit.sh" "$work/study.yaml" "$bucket" --set runtime.gangs=2 | tee "$work/submit.log"

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

say "stopping another one"
"$here/launch/submit.sh" --detach "$work/study.yaml" "${bucket/tiny/other}" --set runtime.gangs=2 | tee "$work/detached.log"
job=$(sed -n 's/^job \([^:]*\):.*/\1/p' "$work/detached.log")
sleep 30
ray job status "$job"
ray job stop "$job"
ray job logs "$job" | tail -n 5
pitune status "${bucket/tiny/other}"
