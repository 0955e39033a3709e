#!/usr/bin/env bash
# One study on a Slurm allocation. A template: the tests run ShellCheck on it; it was never submitted.
#
#   sbatch cluster/slurm.sh configs/quickstart.yaml /shared/studies/quickstart
#
# Submit it from the checkout, whose virtual environment .venv every node can reach. A job that hits its time limit is
# submitted again and goes on from the last committed artifact. `ray symmetric-run` ends with `ray stop`, which stops every
# Ray of yours on the node: hence --exclusive.
#SBATCH --job-name=pitune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
# With GPUs: #SBATCH --gpus-per-node=1, `--num-gpus=1` below, and `--set runtime.gpus_per_worker=1` after the study.
set -euo pipefail

config=${1:?usage: sbatch cluster/slurm.sh CONFIG STUDY [more of pitune run]}
study=${2:?usage: sbatch cluster/slurm.sh CONFIG STUDY [more of pitune run]}
shift 2

# shellcheck disable=SC1091
. "${SLURM_SUBMIT_DIR:-.}/.venv/bin/activate"

# A token of this job's own; Ray's processes on every node get it through the environment.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_TRAIN_V2_ENABLED=1 RAY_USAGE_STATS_ENABLED=0
export PITUNE_CACHE=${PITUNE_CACHE:-$(dirname "$study")/.cache}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379

srun --export=ALL ray symmetric-run \
    --address "$address" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" \
    -- pitune run "$config" --set "study=$study" --address auto "$@"
