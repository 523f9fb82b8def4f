# Potluck: the two commands of a fresh machine are `make demo` and `make test`. `make` lists all.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Outside the clone, so that a second clone (or CI run) does not compile the dependencies again.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/potluck/target
BIN := $(CARGO_TARGET_DIR)/debug
MODEL := smollm2-135m
RUST_MIN := 1.95

.PHONY: help setup build model demo test bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

model: build ## fetch the model of the demo and the tests (98 MB, once)
	@"$(BIN)/potluckd" models pull $(MODEL)

demo: build ## one bootstrap, two providers and a renter, on this machine
	@"$(BIN)/potluck-demo"

test: model ## everything, with stories over real processes and the real model
	@cargo test --workspace --locked

bench: model ## measure; ONLY=market|renter|owner narrows it
	@cargo bench --workspace --locked --profile dev --bench market -- $(ONLY)

lint: setup ## format, clippy, and cargo-deny where it is installed
	@cargo fmt --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check; else echo "cargo-deny is not installed: advisories, licences and bans were not checked"; fi

clean: ## drop this workspace's build outputs, keep the dependencies' and the models
	@cargo clean $(foreach room,protocol sandbox node miner client tests,-p potluck-$(room))
