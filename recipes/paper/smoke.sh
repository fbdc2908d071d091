#!/usr/bin/env bash
# recipes/paper/smoke.sh [DATA]
#
# The paper's three stages end to end on two cores: the recipes of this folder with a toy Whisper and a toy Qwen3 of random weights,
# on real speech of DATA (../shared/data). Each stage starts from the one before, its loss must fall, and stage 2 is killed in
# the middle and resumed, which must give the same bits as a run that was not.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:-../shared/data}
if [ ! -d "$data" ]; then
    echo "recipes/paper/smoke.sh: there is no $data; give the folder of the recordings." >&2
    exit 0
fi
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python}" recipes/paper/smoke.py "$data" "${2:-runs/paper-smoke}"
