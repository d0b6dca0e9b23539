#!/usr/bin/env bash
# Asks the agent spoken questions and writes its spoken answers to demo/: what `make demo` runs.
#   demo.sh BUNDLE QUESTION.wav...
set -euo pipefail
bundle=$1
shift
[ -f "$bundle/bundle.toml" ] || { echo "demo: no bundle in $bundle ('make train' makes one in runs/nano/bundle)" >&2; exit 1; }

# --workspace: the same dependency features as the tests, so that both share what is built
echo "building sa-agent into ${CARGO_TARGET_DIR:=target} (long the first time) …"
cargo build --workspace --bin sa-agent

rm -rf demo
mkdir -p demo
export SA_HOME_STATE=$PWD/demo/home.state
talk() { "$CARGO_TARGET_DIR/debug/sa-agent" talk --bundle "$bundle" --output-dir demo --tools device/examples/tools.toml "$@"; }

# Samples that follow from the one before (samples.jsonl says which) are one conversation with it; all others stand alone.
follows() { grep -sF "\"$(basename "$1")\"" "$(dirname "$1")/samples.jsonl" | grep -q '"follows": true'; }
alone=()
dialogues=()
for question; do
  if follows "$question" && [ ${#alone[@]} -gt 0 ]; then
    dialogues+=("${alone[-1]}"$'\n'"$question")
    unset 'alone[-1]'
  else
    alone+=("$question")
  fi
done
talk --fresh --input "${alone[@]}"
for dialogue in ${dialogues[@]+"${dialogues[@]}"}; do
  echo
  mapfile -t turns <<<"$dialogue"
  talk --input "${turns[@]}"
done
echo
echo "the spoken answers are in $PWD/demo"
