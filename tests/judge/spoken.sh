#!/usr/bin/env bash
# Asks the shipped agent the sample questions and lets the judge listen to the answers.
#   tests/judge/spoken.sh SCRATCH_FOLDER [BUNDLE [SAMPLES]]
set -euo pipefail
cd "$(dirname "$0")/../.."
answers=$1/answers
bundle=${2:-models/pretrained/nano/bundle}
samples=${3:-models/pretrained/nano/samples}
SA_CACHE=${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}
agent=${CARGO_TARGET_DIR:-target}/debug/sa-agent

rm -rf "$answers"
mkdir -p "$answers"
export SA_HOME_STATE=$1/home.state
# what each answer should sound like is what the agent says that it says
"$agent" talk --bundle "$bundle" --input "$samples"/*.wav --output-dir "$answers" --tools device/examples/tools.toml --fresh --json |
  python3 -c '
import json, os, sys
for event in map(json.loads, sys.stdin):
    if event["event"] == "turn" and event["reply_text"]:
        name = os.path.splitext(os.path.basename(event["source"]))[0] + ".wav"
        print(json.dumps({"wav": name, "text": event["reply_text"]}))
' >"$answers/list.jsonl"
"$SA_CACHE/judge-venv/bin/python" tests/judge/judge.py --list "$answers/list.jsonl" --domain "$samples/replies.txt" --max-wer 8
