#!/usr/bin/env bash
# An example of a Slurm job array that fuses a large archive: eight jobs, each with every eighth pair.
#   MRI=archive/MRI OTHER=archive/PET OUT=archive/fused sbatch --export=ALL tools/slurm-fuse.sh
# A job that failed is repeated alone with sbatch --array=3; the others' results stay as they are.
#SBATCH --job-name=medfuse
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --output=medfuse-%A-%a.log
set -euo pipefail

: "${MRI:?the folder of MRIs}" "${OTHER:?the folder of the other images}" "${OUT:?the folder for the results}"
# Shards are counted over the whole array, also when only some of its tasks are repeated.
shards=${SHARDS:-8}
medfuse fuse "$MRI" "$OTHER" --out "$OUT" --shard "$SLURM_ARRAY_TASK_ID/$shards" --device "${DEVICE:-auto}"
