# The documented commands. Everything is built once, with the dev profile (own code optimised, dependencies fully),
# into a cache folder outside the clone, so that the next clone finds it again.
# Without a HOME (some CI machines) the cache goes to /var/tmp.
export SA_CACHE ?= $(if $(HOME),$(HOME)/.cache,/var/tmp)/sa
export CARGO_TARGET_DIR ?= $(if $(HOME),$(HOME)/.cache,/var/tmp)/sa-target

# demo: which questions; train: what to make of it (see models/train.sh for the steps of each network)
QUESTIONS ?= models/pretrained/nano/samples/*.wav
BUNDLE ?= models/pretrained/nano/bundle
RUN ?= runs/nano

.PHONY: help demo test lint bench figures train setup

help:
	@echo "make demo     ask the shipped agent the sample questions (QUESTIONS='my.wav other.wav' for your own)"
	@echo "make test     all tests; installs what they lack"
	@echo "make lint     formatting and clippy, warnings are errors"
	@echo "make bench    start-up, memory, latency and speed of sa-agent on this machine"
	@echo "make figures  every figure of the README, as Markdown (takes about half an hour)"
	@echo "make train    from nothing to a bundle in $(RUN) (hours; goes on where it stopped)"

demo:
	@tests/setup.sh demo
	@device/examples/demo.sh "$(BUNDLE)" $(QUESTIONS)

test:
	@tests/setup.sh test
	@tests/run.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench:
	@tests/setup.sh bench
	@tests/figures.py size speed
	@tests/reference/speed.sh

figures:
	@tests/setup.sh train
	@tests/figures.py all

train:
	@tests/setup.sh train
	@models/train.sh "$(RUN)"
