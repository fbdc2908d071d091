#!/usr/bin/env bash
# recipes/tiny/prepare.sh DATA SPEECHOCEAN LJSPEECH
#
# Makes the manifests of recipes/tiny from the speech corpus in DATA and from clones of jimbozhang/speechocean762 and
# PrernaSocity/lj_speech_dataset_part_1 (DATA/README.md says more of both). About half an hour of one core; what is there
# already is not made again. fetch_more.py needs soundfile beside what fastslm installs.
set -euo pipefail
DATA=$1 SPEECHOCEAN=$2 LJSPEECH=$3

fetch() { # clone, layout, name
    [ -e "cache/more/$3/train.jsonl" ] || python "$DATA/fetch_more.py" "$1" "$2" cache/more --name "$3" --split train \
        --skip-speakers "$DATA"/*/validation.jsonl "$DATA"/*/test*.jsonl "$DATA/librispeech/aligned.jsonl"
}
label() { # manifest, name: texts with case and marks, as Whisper's decoder is to write them
    [ -e "cache/labels/$2.jsonl" ] || fastslm data label "$1" "cache/labels/$2.jsonl"
}
tasks() { # manifest, name, tasks: questions and summaries with their answers
    [ -e "cache/instructions/$2.jsonl" ] || fastslm data synthesize "$1" "cache/instructions/$2.jsonl" --tasks "$3" --seed 1
}

mkdir -p cache/labels cache/instructions
fetch "$SPEECHOCEAN" speechocean speechocean
fetch "$LJSPEECH" ljspeech ljspeech
label "$DATA/librispeech/train.jsonl" librispeech
label "$DATA/commonvoice/train.jsonl" commonvoice
label cache/more/speechocean/train.jsonl speechocean
label cache/more/ljspeech/train.jsonl ljspeech
label "$DATA/coffee/train.jsonl" coffee
label "$DATA/coffee/validation.jsonl" coffee-validation
tasks cache/labels/coffee.jsonl coffee ask
tasks cache/labels/coffee-validation.jsonl coffee-validation ask
tasks cache/labels/librispeech.jsonl librispeech summarize,ask
tasks cache/labels/commonvoice.jsonl commonvoice transcribe,summarize,ask
tasks "$DATA/environment/train.jsonl" environment transcribe,ask
