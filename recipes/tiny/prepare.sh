#!/usr/bin/env bash
# recipes/tiny/prepare.sh DATA SPEECHOCEAN LJSPEECH MULTI30K TATOEBA [SOURCE=CLONE...]
#
# Makes the manifests of recipes/tiny from the speech corpus in DATA, from clones of jimbozhang/speechocean762 and
# PrernaSocity/lj_speech_dataset_part_1 (DATA/README.md says more of both), and from translated texts: a clone of
# multi30k/dataset and fra.txt of DevHunterYZ/Neural-Machine-Translation (translations.py says more). About an hour of one
# core; what is there already is not made again. fetch_more.py needs soundfile beside what fastslm installs, and the last
# command hibari-tts.
#
# With sources of texts (books=CLONE squad=CLONE names=3000 ...; texts.py lists them with their licences) it also makes
# up to 100 hours of speech in cache/made, which takes some hours of one core, 1.1 GB, hibari-tts and num2words.
set -euo pipefail
DATA=$1 SPEECHOCEAN=$2 LJSPEECH=$3 MULTI30K=$4 TATOEBA=$5
shift 5

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
orders() { # manifest, name: questions about orders, and about what else is said
    [ -e "cache/instructions/$2.jsonl" ] || python recipes/tiny/orders.py "$1" "cache/instructions/$2.jsonl" --seed 1
}
mixed() { # name, MANIFEST=WEIGHT...: what long recordings are composed of
    [ -e "cache/long/$1.jsonl" ] || fastslm data mix "cache/long/$1.jsonl" "${@:2}"
}
long() { # manifest, name, tasks (or orders), options: recordings of minutes, and tasks about them
    [ -e "cache/long/$2.jsonl" ] || fastslm data compose "$1" "cache/long/$2.jsonl" "${@:4}" --seed 1
    if [ "$3" = orders ]; then orders "cache/long/$2.jsonl" "$2"; else tasks "cache/long/$2.jsonl" "$2" "$3"; fi
}

translations() { # split: text alone, to be translated
    [ -e "cache/instructions/translations-$1.jsonl" ] || fastslm data synthesize "cache/translations/$1.jsonl" \
        "cache/instructions/translations-$1.jsonl" --tasks translate --seed 1
}

mkdir -p cache/labels cache/instructions cache/long
fetch "$SPEECHOCEAN" speechocean speechocean
fetch "$LJSPEECH" ljspeech ljspeech
label "$DATA/librispeech/train.jsonl" librispeech
label "$DATA/librispeech/validation.jsonl" librispeech-validation
label "$DATA/commonvoice/train.jsonl" commonvoice
label cache/more/speechocean/train.jsonl speechocean
label cache/more/ljspeech/train.jsonl ljspeech
label "$DATA/coffee/train.jsonl" coffee
label "$DATA/coffee/validation.jsonl" coffee-validation
orders cache/labels/coffee.jsonl coffee
orders cache/labels/coffee-validation.jsonl coffee-validation
tasks cache/labels/librispeech.jsonl librispeech summarize,ask
tasks cache/labels/commonvoice.jsonl commonvoice transcribe,summarize,ask
tasks "$DATA/environment/train.jsonl" environment transcribe,ask

# Stage 2: orders somewhere in minutes of other speech and sounds, and chapters of one reader.
mixed pieces cache/labels/librispeech.jsonl=1519 cache/labels/commonvoice.jsonl=2053 "$DATA/environment/train.jsonl=240"
mixed pieces-validation cache/labels/librispeech-validation.jsonl=100 "$DATA/commonvoice/validation.jsonl=132" \
    "$DATA/environment/validation.jsonl=20"
long cache/long/pieces.jsonl long-orders orders --needles cache/labels/coffee.jsonl --minutes 1-5 --count 240
long cache/long/pieces.jsonl longest-orders orders --needles cache/labels/coffee.jsonl --minutes 5-15 --count 40
long cache/labels/librispeech.jsonl long-talks summarize,ask --by speaker --minutes 1-5 --count 160
long cache/labels/librispeech.jsonl long-dictations transcribe --by speaker --minutes 1-3 --count 120
long cache/long/pieces-validation.jsonl long-orders-validation orders \
    --needles cache/labels/coffee-validation.jsonl --minutes 1-5 --count 20
long cache/labels/librispeech-validation.jsonl long-talks-validation transcribe,summarize --minutes 1-4 --count 20
[ -e cache/instructions/long-validation.jsonl ] || fastslm data mix cache/instructions/long-validation.jsonl \
    cache/instructions/long-orders-validation.jsonl=3 cache/instructions/long-talks-validation.jsonl=2 --count 40 --seed 1

# Stage 3, all tasks: dictations, and French for captions and short sentences.
[ -e cache/instructions/librispeech-dictations.jsonl ] || fastslm data synthesize cache/labels/librispeech.jsonl \
    cache/instructions/librispeech-dictations.jsonl --tasks transcribe --seed 1
[ -e cache/translations/test-said.jsonl ] || python recipes/tiny/translations.py "$MULTI30K" "$TATOEBA" cache/translations
translations train
translations validation
[ -e cache/translations/test-spoken.jsonl ] ||
    fastslm data synthesize cache/translations/test-said.jsonl cache/translations/test-spoken.jsonl --tts --seed 1

# Made speech, where texts are given. A run that was stopped goes on.
if [ $# -gt 0 ]; then
    [ -e cache/texts.jsonl ] || python recipes/tiny/texts.py cache/texts.jsonl --sources "$@" \
        --held-out "$DATA"/*/validation.jsonl "$DATA"/*/test*.jsonl
    python recipes/tiny/made_speech.py cache/made cache/texts.jsonl --hours 100 --seed 1 \
        --noises "$DATA/environment/train.jsonl"
fi
