# Potluck: the two commands of a fresh machine are `make demo` and `make test`. `make` lists all.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Outside the clone, so that a second clone (or CI run) does not compile the dependencies again.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/potluck/target
BIN := $(CARGO_TARGET_DIR)/debug
MODELS := smollm2-135m all-minilm-l6-v2
RUST_MIN := 1.95
NODES ?= 1000
KILLS ?= 1000
SEED ?= 1
FUZZ_SECONDS ?= 3600
# What cargo-fuzz passes: coverage for libFuzzer, the address sanitizer, checked arithmetic.
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1 \
  -Cdebug-assertions -Coverflow-checks --cfg fuzzing

.PHONY: help setup build model demo test escape-mutations simulate crash fuzz bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## check what the build needs; install the C compiler when root
	@[[ "$$(uname -s)" == Linux ]] || { echo "error: Potluck runs on Linux only for now; this is $$(uname -s)" >&2; exit 1; }
	@if ! command -v cc >/dev/null; then \
	  if [[ "$$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then \
	    echo "installing build-essential (a C compiler is missing)"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq build-essential >/dev/null; \
	  else \
	    echo "error: no C compiler. Install one: sudo apt install build-essential   (Fedora: sudo dnf install gcc)" >&2; exit 1; \
	  fi; \
	fi
	@command -v cargo >/dev/null && command -v rustc >/dev/null || { \
	  echo "error: no Rust. Install rustc $(RUST_MIN) or newer from https://rustup.rs, then run this again" >&2; exit 1; }
	@have="$$(rustc --version | cut -d ' ' -f 2)"; \
	  [[ "$$(printf '%s\n%s\n' '$(RUST_MIN)' "$$have" | sort -V | head -n 1)" == '$(RUST_MIN)' ]] || { \
	  echo "error: rustc $$have is too old; $(RUST_MIN) or newer is needed: rustup update stable" >&2; exit 1; }

build: setup ## compile all programs (the first time: 500 dependencies)
	@cargo build --workspace --locked

model: build ## fetch the models of the demo and the tests (190 MB, once)
	@for model in $(MODELS); do "$(BIN)/potluckd" models pull "$$model"; done

demo: build ## one bootstrap, two providers and a renter, on this machine
	@"$(BIN)/potluck-demo"

test: model ## everything, with stories over real processes and the real model
	@cargo test --workspace --locked

escape-mutations: build ## who stops what: the escape suite with each layer of the jail off in turn
	@cargo test --package potluck-sandbox --locked --test escape -- --mutations $(ONLY)

bench: model ## measure; ONLY=market|renter|owner|sandbox|settlement|store narrows it
	@cargo bench --workspace --locked --profile dev --no-fail-fast --bench market --bench sandbox --bench settlement -- $(ONLY)

simulate: setup ## 1,000 strangers (NODES) in virtual time, one in five a liar: who loses how much at most
	@POTLUCK_SIMULATE=$(NODES) cargo test -p potluck-tests --locked --test simulation -- --nocapture value_is_conserved

crash: model ## kill a provider and a renter KILLS (1000) times at random, plan by SEED (1): who loses how much
	@KILLS=$(KILLS) SEED=$(SEED) cargo test -p potluck-tests --locked --test crash -- --ignored --nocapture

fuzz: setup ## strangers' bytes at every parser, FUZZ_SECONDS (3600) each; needs a nightly compiler
	@RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)/fuzz" \
	  cargo +nightly build --manifest-path tests/fuzz/Cargo.toml --target "$$(rustc -vV | sed -n 's/^host: //p')"
	@for target in tests/fuzz/fuzz_targets/*.rs; do \
	  name="$$(basename "$$target" .rs)"; corpus="$(CARGO_TARGET_DIR)/fuzz/corpus/$$name"; mkdir -p "$$corpus"; \
	  "$(CARGO_TARGET_DIR)/fuzz/$$(rustc -vV | sed -n 's/^host: //p')/debug/$$name" "$$corpus" \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=70000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix="$(CARGO_TARGET_DIR)/fuzz/found-$$name-"; \
	done

lint: setup ## format, clippy, and cargo-deny where it is installed
	@cargo fmt --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check; else echo "cargo-deny is not installed: advisories, licences and bans were not checked"; fi

clean: ## drop this workspace's build outputs, keep the dependencies' and the models
	@cargo clean $(foreach room,protocol sandbox node miner client tests,-p potluck-$(room))
