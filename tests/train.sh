#!/usr/bin/env bash
# models/train.sh in sizes that need a minute: killed in its last training, gone on with, and called again when all is done and when the
# bundle is gone. Then a training that begins with its language model.
#   tests/train.sh SCRATCH_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
run=$1/train
mkdir -p "$run"
fail() { echo "train.sh: $*; the last of its output:" >&2; tail -n 20 "$run"/call*.log >&2; exit 1; }

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
export CORPUS_QUESTIONS=60 CORPUS_SWAPPED=4 CORPUS_REPLIES=24 COPIES=1 PRECISION=--fp32
export CTC_STEPS=4 HUBERT_STEPS=3 ROBUST_STEPS=3 DECODER_STEPS=4 LM_STEPS=12
export TOKENIZER_FLAGS="--width 32 --layers 1 --units 40 --batch 8 --save-every 2" DECODER_FLAGS="--batch 1 --crop 8 --samples 1" LM_FLAGS="--batch 2 --save-every 4"
export THREADS=1

# In a group of its own, so that a kill takes all of it, as the end of a machine does.
setsid models/train.sh "$run" > "$run/call1.log" 2>&1 &
first=$!
for _ in $(seq 6000); do
  [ ! -e "$run/lm/log.jsonl" ] || [ "$(wc -l < "$run/lm/log.jsonl")" -lt 6 ] || break
  kill -0 "$first" 2>/dev/null || fail "the first call ended before it was killed"
  sleep 0.1
done
kill -KILL -- "-$first" || fail "the first call ended before it was killed"
wait "$first" 2>/dev/null || true
units=$(sha256sum "$run"/units/questions*/*.u16)
before=$(awk '{ sum += $1 } END { print sum }' "$run/times.txt")
[ ! -e "$run/bundle" ] || fail "it was killed too late"

models/train.sh "$run" > "$run/call2.log" 2>&1 || fail "the second call failed"
[ "$units" = "$(sha256sum "$run"/units/questions*/*.u16)" ] || fail "the units were made again"
for stage in tokenizer/ctc:4 tokenizer/hubert:3 tokenizer/robust:3 decoder:4 lm:12; do
  steps=$(sed 's/.*"step":\([0-9]*\).*/\1/' "$run/${stage%:*}/log.jsonl" | tr '\n' ' ')
  [ "$steps" = "$(seq "${stage#*:}" | tr '\n' ' ')" ] || fail "${stage%:*} noted the steps $steps"
done
[ -s "$run/bundle/bundle.toml" ] || fail "there is no bundle"
[ "$(wc -l < "$run/times.txt")" = 7 ] && [ "$(awk '{ sum += $1 } END { print sum }' "$run/times.txt")" -ge "$before" ] || fail "times.txt: $(cat "$run/times.txt")"
grep -q "s  in all" "$run/call2.log" || fail "no sum of the times"

bundle=$(sha256sum "$run"/bundle/*)
started=$SECONDS
models/train.sh "$run" > "$run/call3.log" 2>&1 || fail "the third call failed"
[ "$bundle" = "$(sha256sum "$run"/bundle/*)" ] || fail "the bundle was made again"
[ $((SECONDS - started)) -le 60 ] || fail "with nothing left to do it took $((SECONDS - started)) s"

report=$(stat -c %i "$run/report.txt")
rm -r "$run/bundle"
models/train.sh "$run" > "$run/call4.log" 2>&1 || fail "the fourth call failed"
[ -s "$run/bundle/bundle.toml" ] || fail "a bundle that was deleted was not made again"
[ "$report" = "$(stat -c %i "$run/report.txt")" ] || fail "the evaluation was made again for a bundle that was deleted"

adapt() { # what to begin with, steps, where
  "$CARGO_TARGET_DIR/debug/sa-align" lm --corpus "$run/corpus" --units "$run/units" --batch 2 --from "$1" --keep 0.5 --steps "$2" --output "$run/$3" > "$run/call5.log" 2>&1
}
adapt "$run/checkpoint/lm" 2 adapted || fail "its own weights were refused"
[ "$(wc -l < "$run/adapted/log.jsonl")" = 2 ] && [ -s "$run/adapted/checkpoint/model.safetensors" ] || fail "nothing came of a training from weights"
! adapt "$run/lm/checkpoint" 2 adapted || fail "a run went on from other weights than it began with"
grep -q "from: " "$run/call5.log" || fail "it does not say what differs"
tail -n +2 "$run/checkpoint/vocabulary.txt" > "$run/shorter" && mv "$run/shorter" "$run/checkpoint/vocabulary.txt"
! adapt "$run/checkpoint/lm" 2 other || fail "weights for other words were taken"
grep -q "vocabulary.txt" "$run/call5.log" || fail "it does not say whose words they are"
tail -n 9 "$run/call3.log"
