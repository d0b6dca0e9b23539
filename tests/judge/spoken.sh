#!/usr/bin/env bash
# Asks the shipped agent the sample questions and lets the judge listen to the answers.
#   tests/judge/spoken.sh SCRATCH_FOLDER [BUNDLE [SAMPLES]]
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$1
bundle=${2:-models/pretrained/nano/bundle}
samples=${3:-models/pretrained/nano/samples}
SA_CACHE=${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}
agent=${CARGO_TARGET_DIR:-target}/debug/sa-agent

mkdir -p "$scratch/answers"
inputs=()
for wav in "$samples"/*.wav; do inputs+=(--input "$wav"); done
"$agent" talk --bundle "$bundle" "${inputs[@]}" --output-dir "$scratch/answers" --tools device/examples/tools.toml --fresh --json >"$scratch/events.jsonl"
python3 tests/judge/replies.py --events "$scratch/events.jsonl" --answers "$scratch/answers" --output "$scratch/answers/list.jsonl"
"$SA_CACHE/judge-venv/bin/python" tests/judge/judge.py --list "$scratch/answers/list.jsonl" --domain "$samples/replies.txt" --max-wer 8
