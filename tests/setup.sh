#!/usr/bin/env bash
# Installs what `make demo`, `make test` or `make train` lack, and says what. Rust itself is assumed.
#   tests/setup.sh demo|bench|test|train
set -euo pipefail
wanted=${1:?demo, bench, test or train}
SA_CACHE=${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}
VENV=$SA_CACHE/judge-venv
POCKETSPHINX=5.1.1
ONNX_VENV=$SA_CACHE/onnx-venv
REFERENCE_VENV=$SA_CACHE/reference-venv
# NumPy 1, for which Debian's PyTorch was built.
REFERENCE="numpy==1.26.4 transformers==4.48.3 scikit-learn==1.5.2 joblib==1.6.0 onnxruntime==1.20.1"
ONNX="onnxruntime==1.31.1 onnx==1.23.2"

command -v cargo >/dev/null || { echo "setup: no cargo; Rust 1.95 or newer is assumed (https://rustup.rs)" >&2; exit 1; }

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); } # program, Debian package
need cc gcc
# cpal always speaks to ALSA on Linux; its headers are found by pkg-config.
need pkg-config pkg-config
[ -e /usr/include/alsa/asoundlib.h ] || missing+=(libasound2-dev)
[ "$wanted" = demo ] || need python3 python3 # measures and judges
if [ "$wanted" = test ] || [ "$wanted" = train ]; then
  need espeak-ng espeak-ng # voices and phones of the corpus
  need flite flite # the voice that the agent copies
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing Debian packages: ${missing[*]}"
  command -v apt-get >/dev/null || { echo "setup: no apt-get here; install these by hand: ${missing[*]}" >&2; exit 1; }
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if { [ "$wanted" = test ] || [ "$wanted" = train ]; } && [ "$(cat "$VENV/installed" 2>/dev/null)" != "$POCKETSPHINX" ]; then
  echo "setup: installing pocketsphinx $POCKETSPHINX (the judge of the tests, no part of the product) into $VENV"
  rm -rf "$VENV"
  mkdir -p "$SA_CACHE"
  if python3 -m venv "$VENV" && "$VENV/bin/pip" install -q --disable-pip-version-check "pocketsphinx==$POCKETSPHINX"; then
    echo "$POCKETSPHINX" >"$VENV/installed"
  else
    rm -rf "$VENV"
    echo "setup: no pocketsphinx (is PyPI reachable?); tests that listen to the agent's speech will be left out, and say so" >&2
  fi
fi

# The reference implementations: Debian's PyTorch (on the CPU; PyPI has it with gigabytes of CUDA only) under transformers.
if [ "$wanted" = test ] && [ "$(cat "$REFERENCE_VENV/installed" 2>/dev/null)" != "$REFERENCE" ]; then
  echo "setup: installing python3-torch (Debian) and $REFERENCE (what imported checkpoints are held against) into $REFERENCE_VENV"
  rm -rf "$REFERENCE_VENV"
  mkdir -p "$SA_CACHE"
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  # unquoted: several packages
  if { /usr/bin/python3 -c 'import torch, ensurepip' 2>/dev/null || {
    $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends python3-torch python3-venv >/dev/null
  }; } && /usr/bin/python3 -m venv --system-site-packages "$REFERENCE_VENV" &&
    "$REFERENCE_VENV/bin/pip" install -q --disable-pip-version-check $REFERENCE; then
    echo "$REFERENCE" >"$REFERENCE_VENV/installed"
  else
    rm -rf "$REFERENCE_VENV"
    echo "setup: no PyTorch or transformers (are Debian's archive and PyPI reachable?); the tests against them will be left out, and say so" >&2
  fi
fi

if [ "$wanted" = test ] && [ "$(cat "$ONNX_VENV/installed" 2>/dev/null)" != "$ONNX" ]; then
  echo "setup: installing $ONNX (the second engine and the checker of graphs, for the tests alone) into $ONNX_VENV"
  rm -rf "$ONNX_VENV"
  mkdir -p "$SA_CACHE"
  # unquoted: two packages
  if python3 -m venv "$ONNX_VENV" && "$ONNX_VENV/bin/pip" install -q --disable-pip-version-check $ONNX; then
    echo "$ONNX" >"$ONNX_VENV/installed"
  else
    rm -rf "$ONNX_VENV"
    echo "setup: no onnxruntime (is PyPI reachable, and is there a wheel for this Python?); the tests of the second engine will be left out, and say so" >&2
  fi
fi
