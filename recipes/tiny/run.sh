#!/usr/bin/env bash
# recipes/tiny/run.sh DATA SPEECHOCEAN LJSPEECH MULTI30K TATOEBA
#
# fastslm-tiny: manifests, the projector that hears, the three stages, and the card of what came of them. Started again, it goes
# on where it was stopped. Arguments as of prepare.sh. The chain that made the shipped checkpoint is in the history of this folder
# (commit 30e99a7).
set -euo pipefail
recipes/tiny/prepare.sh "$@"
for recipe in hear stage1 stage2 stage3; do
    fastslm train "recipes/tiny/$recipe.yaml"
done
cp checkpoints/fastslm-tiny/README.md runs/tiny-stage3/model/
python benchmarks/card.py runs/tiny-stage3/model "$1" --without cascade
