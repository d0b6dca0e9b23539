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
CORPUS_QUESTIONS=${CORPUS_QUESTIONS:-75000}
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
# More flags for each program, for example EXPORT_FLAGS=--force where a named PRECISION misses its budget
TOKENIZER_FLAGS=${TOKENIZER_FLAGS:-} DECODER_FLAGS=${DECODER_FLAGS:-} LM_FLAGS=${LM_FLAGS:-} EXPORT_FLAGS=${EXPORT_FLAGS:-}

cargo build --workspace --bins
bin=$CARGO_TARGET_DIR/debug
mkdir -p "$run"

# RUN/times.txt: wall seconds of each stage, over all calls. Those of the stage under way are noted every few seconds, so that a kill loses
# no more than these.
stage="" ticker=""
note() {
  local partial=$run/times.partial$BASHPID
  printf '%s\n%d %s\n' "$before" $((SECONDS - began)) "$stage" |
    awk 'NF > 1 { s = $1; sub(/^[0-9]+ /, ""); if (!($0 in sum)) names[++n] = $0; sum[$0] += s } END { for (i = 1; i <= n; i++) print sum[names[i]], names[i] }' \
      > "$partial"
  mv "$partial" "$run/times.txt"
}
end() {
  [ -n "$stage" ] || return 0
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  rm -f "$run"/times.partial*
  note
  stage=""
}
trap end EXIT
step() { # name of the stage, what it does in words
  end
  stage=$1 began=$SECONDS before=$(cat "$run/times.txt" 2>/dev/null || true)
  (while sleep 5 && kill -0 $$; do note; done) >/dev/null 2>&1 &
  ticker=$!
  echo
  echo "== $1${2:+: $2} ($(date +%H:%M))"
}

step "corpus" "$CORPUS_QUESTIONS questions, $CORPUS_REPLIES replies"
"$bin/sa-align" corpus --output "$run/corpus" --questions "$CORPUS_QUESTIONS" --replies "$CORPUS_REPLIES" --seed "$SEED" ${CORPUS_SWAPPED:+--swapped "$CORPUS_SWAPPED"} \
  ${GRAMMAR:+--grammar "$GRAMMAR"} ${RECORDINGS:+--recordings "$RECORDINGS"}

step "tokenizer"
"$bin/sa-align" tokenizer --corpus "$run/corpus" --output "$run/tokenizer" --seed "$SEED" \
  ${CTC_STEPS:+--steps-ctc "$CTC_STEPS"} ${HUBERT_STEPS:+--steps-hubert "$HUBERT_STEPS"} ${ROBUST_STEPS:+--steps-robust "$ROBUST_STEPS"} $TOKENIZER_FLAGS

step "units of the corpus"
"$bin/sa-align" tokenizer --corpus "$run/corpus" --encode "$run/tokenizer/checkpoint" --output "$run/units" --augment-copies "$COPIES" --seed "$SEED"

step "decoder"
"$bin/sa-align" decoder --corpus "$run/corpus" --units "$run/units" --output "$run/decoder" --seed "$SEED" ${DECODER_STEPS:+--steps "$DECODER_STEPS"} $DECODER_FLAGS

step "language model"
"$bin/sa-align" lm --corpus "$run/corpus" --units "$run/units" --output "$run/lm" --seed "$SEED" --threads "$THREADS" ${LM_STEPS:+--steps "$LM_STEPS"} $LM_FLAGS

step "checkpoint and bundle"
# What bundle and report are made of, programs included. Each has a mark of its own, so that a kill in the evaluation costs no second export.
parts=("$run"/{tokenizer,decoder,lm}/checkpoint/{config.json,model.safetensors} "$run/corpus/manifest.json" "$bin/sa-export" "$bin/sa-align")
made_of=$(cat "${parts[@]}" <(echo "$PRECISION $EXPORT_FLAGS") | sha256sum)
made() { # mark, a file that is there when all is
  [ -s "$2" ] && [ "$(cat "$1" 2>/dev/null)" = "$made_of" ]
}
if ! made "$run/bundle.made-of" "$run/bundle/bundle.toml"; then
  rm -rf "$run/checkpoint.partial" "$run/bundle.made-of"
  mkdir -p "$run/checkpoint.partial"
  for part in tokenizer decoder lm; do
    mkdir "$run/checkpoint.partial/$part"
    cp "$run/$part/checkpoint/config.json" "$run/checkpoint.partial/$part/"
    models/half.py "$run/$part/checkpoint/model.safetensors" "$run/checkpoint.partial/$part/model.safetensors"
  done
  cp "$run/corpus/vocabulary.txt" "$run/checkpoint.partial/"
  rm -rf "$run/checkpoint"
  mv "$run/checkpoint.partial" "$run/checkpoint"
  # Fewer than 20 questions have none to test: the forms are compared on built-in sounds then.
  samples=("--samples" "$run/corpus")
  grep -qs '"split":"test"' "$run"/corpus/questions/*.jsonl || samples=()
  "$bin/sa-export" "$PRECISION" --checkpoint "$run/checkpoint" --output "$run/bundle" "${samples[@]}" --name nano $EXPORT_FLAGS
  echo "$made_of" > "$run/bundle.made-of"
fi

step "evaluation on the test questions"
if ! made "$run/report.made-of" "$run/report.txt"; then
  "$bin/sa-align" lm --corpus "$run/corpus" --units "$run/units" --evaluate "$run/lm/checkpoint" > "$run/report.partial"
  mv "$run/report.partial" "$run/report.txt"
  echo "$made_of" > "$run/report.made-of"
fi
cat "$run/report.txt"

end
echo
awk '{ sum += $1; printf "%8d s  ", $1; $1 = ""; print substr($0, 2) } END { printf "%8d s  in all (%.1f h)\n", sum, sum / 3600 }' "$run/times.txt"
echo "the bundle is in $run/bundle; try: make demo BUNDLE=$run/bundle"
