#!/usr/bin/env bash
# recipes/tiny/run.sh DATA SPEECHOCEAN LJSPEECH MULTI30K TATOEBA
#
# fastslm-tiny from nothing: manifests, the stages that made the shipped model, and the card of what came of them. About seven
# hours of one core; started again, it goes on where it was stopped. Arguments as of prepare.sh.
set -euo pipefail
recipes/tiny/prepare.sh "$@"
fastslm train recipes/tiny/stage1-reader.yaml
fastslm train recipes/tiny/stage1-adapt.yaml
[ -e runs/tiny-stage1-between ] || python recipes/tiny/between.py \
    runs/tiny-stage1-reader/model runs/tiny-stage1-adapt/model runs/tiny-stage1-between
fastslm train recipes/tiny/stage2.yaml
fastslm train recipes/tiny/stage3.yaml
fastslm train recipes/tiny/stage3-french.yaml
fastslm train recipes/tiny/stage3-all.yaml
cp checkpoints/fastslm-tiny/README.md runs/tiny-stage3-all/model/
python benchmarks/card.py runs/tiny-stage3-all/model "$1" --without cascade
