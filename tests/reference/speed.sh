#!/usr/bin/env bash
# Imported checkpoints against PyTorch, where the reference environment is installed (tests/setup.sh test).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${SA_TORCH_PYTHON:-${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}/reference-venv/bin/python}
if [ -x "$PYTHON" ]; then
  cargo build -q --workspace --bins
  exec "$PYTHON" tests/reference/speed.py --bin "${CARGO_TARGET_DIR:-target}/debug"
fi
echo "left out: imported checkpoints against PyTorch, which is not installed (tests/setup.sh test)"
