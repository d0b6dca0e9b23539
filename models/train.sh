#!/usr/bin/env bash
# From nothing to a bundle: corpus, tokenizer, units, decoder, language model, export, evaluation. Every step goes on
# where it was stopped, and is left out when it is done; the same command again is always right.
#   models/train.sh [RUN_FOLDER]          or `make train RUN=runs/nano`
# Sizes are variables, for example: CORPUS_QUESTIONS=2000 LM_STEPS=200 make train
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/nano}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}

SEED=${SEED:-1}
GRAMMAR=${GRAMMAR:-}             # a grammar of your own; the home assistant otherwise
RECORDINGS=${RECORDINGS:-}       # a folder of your own recordings (metadata.csv, wavs/) to train on as well
CORPUS_QUESTIONS=${CORPUS_QUESTIONS:-60000}
CORPUS_SWAPPED=${CORPUS_SWAPPED:-}   # questions with swapped words besides; an eighth of the questions where empty
CORPUS_REPLIES=${CORPUS_REPLIES:-6000}
CTC_STEPS=${CTC_STEPS:-}         # steps: those of `sa-align tokenizer|decoder|lm` where empty
HUBERT_STEPS=${HUBERT_STEPS:-}
ROBUST_STEPS=${ROBUST_STEPS:-}
DECODER_STEPS=${DECODER_STEPS:-}
LM_STEPS=${LM_STEPS:-}
COPIES=${COPIES:-3}              # encodings of each training question in noise, besides the clean one
THREADS=${THREADS:-2}            # cores that share a step of the language model
PRECISION=${PRECISION:---int8}

cargo build --workspace --bins
bin=$CARGO_TARGET_DIR/debug
mkdir -p "$run"
step() { echo; echo "== $* ($(date +%H:%M))"; }

step "corpus: $CORPUS_QUESTIONS questions, $CORPUS_REPLIES replies"
"$bin/sa-align" corpus --output "$run/corpus" --questions "$CORPUS_QUESTIONS" --replies "$CORPUS_REPLIES" --seed "$SEED" ${CORPUS_SWAPPED:+--swapped "$CORPUS_SWAPPED"} \
  ${GRAMMAR:+--grammar "$GRAMMAR"} ${RECORDINGS:+--recordings "$RECORDINGS"}

step "tokenizer"
"$bin/sa-align" tokenizer --corpus "$run/corpus" --output "$run/tokenizer" --seed "$SEED" \
  ${CTC_STEPS:+--steps-ctc "$CTC_STEPS"} ${HUBERT_STEPS:+--steps-hubert "$HUBERT_STEPS"} ${ROBUST_STEPS:+--steps-robust "$ROBUST_STEPS"}

step "units of the corpus"
"$bin/sa-align" tokenizer --corpus "$run/corpus" --encode "$run/tokenizer/checkpoint" --output "$run/units" --augment-copies "$COPIES" --seed "$SEED"

step "decoder"
"$bin/sa-align" decoder --corpus "$run/corpus" --units "$run/units" --output "$run/decoder" --seed "$SEED" ${DECODER_STEPS:+--steps "$DECODER_STEPS"}

step "language model"
"$bin/sa-align" lm --corpus "$run/corpus" --units "$run/units" --output "$run/lm" --seed "$SEED" --threads "$THREADS" ${LM_STEPS:+--steps "$LM_STEPS"}

step "checkpoint and bundle"
rm -rf "$run/checkpoint.partial"
mkdir -p "$run/checkpoint.partial"
for part in tokenizer decoder lm; do
  mkdir "$run/checkpoint.partial/$part"
  cp "$run/$part/checkpoint/config.json" "$run/checkpoint.partial/$part/"
  models/half.py "$run/$part/checkpoint/model.safetensors" "$run/checkpoint.partial/$part/model.safetensors"
done
cp "$run/corpus/vocabulary.txt" "$run/checkpoint.partial/"
rm -rf "$run/checkpoint"
mv "$run/checkpoint.partial" "$run/checkpoint"
"$bin/sa-export" "$PRECISION" --checkpoint "$run/checkpoint" --output "$run/bundle" --samples "$run/corpus" --name nano

step "evaluation on the test questions"
"$bin/sa-align" lm --corpus "$run/corpus" --units "$run/units" --evaluate "$run/lm/checkpoint"
echo
echo "the bundle is in $run/bundle; try: make demo BUNDLE=$run/bundle"
