# Everything a newcomer needs is two commands: `make demo` and `make test`. Both install what they need into
# .venv and target/; nothing outside the checkout is touched but the model cache.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEELS := target/wheels
# agentlightning 0.3, which we are measured against and whose clients we serve.
PEER_VENV := target/peer-venv
# agentlightning 1.0 likewise; its own environment, because it needs a newer Python.
CONTROLLER_VENV := target/controller-venv
# One profile for everything, so that each dependency is compiled once.
PROFILE := dev
export CARGO_TERM_COLOR ?= auto
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Prints what a stage is, runs it, and prints how long it took. Without the `exit`, a failure before an && is none.
stage = @echo "── $(1)"; start=$$SECONDS; { $(2); } || exit $$?; echo "── $(1): $$((SECONDS - start)) s"

.PHONY: help
help: ## Shows this list.
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "}; {printf "  make %-12s %s\n", $$1, $$2}'

# ---------------------------------------------------------------------------------------------------------------------
# What a user runs

.PHONY: demo
demo: wheel model ## Runs the quickstart: an unmodified agent, a real model, a durable store.
	@$(BIN)/python examples/quickstart/main.py

.PHONY: test
test: ## Runs every check and every test.
	@start=$$SECONDS; $(MAKE) fmt lint licenses wheel model test-rust stubs test-python && echo "── all stages: $$((SECONDS - start)) s"

# ---------------------------------------------------------------------------------------------------------------------
# Stages

$(VENV)/ready: requirements/dev.txt
	@echo "── Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=/path/to/python3")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --requirement requirements/dev.txt
	@touch $@

$(PEER_VENV)/ready: requirements/peer.txt
	@echo "── agentlightning 0.3 in $(PEER_VENV)"
	@$(PYTHON) -m venv $(PEER_VENV)
	@$(PEER_VENV)/bin/python -m pip install --quiet --requirement requirements/peer.txt
	@touch $@

.PHONY: wheel
wheel: $(VENV)/ready ## Builds the Python package and installs it into .venv.
	$(call stage,wheel,rm -rf $(WHEELS) && $(BIN)/maturin build --quiet --profile $(PROFILE) --out $(WHEELS) \
		&& $(BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEELS)/*.whl)

.PHONY: model
model: wheel ## Fetches the default model into the cache, once.
	$(call stage,model,$(BIN)/agl model pull smollm2)

.PHONY: fmt
fmt: $(VENV)/ready ## Checks formatting.
	$(call stage,formatting,cargo fmt --all --check && $(BIN)/ruff format --check --quiet .)

.PHONY: lint
lint: $(VENV)/ready ## Runs clippy and ruff, warnings denied.
	$(call stage,clippy,cargo clippy --workspace --all-targets --locked --quiet -- -D warnings)
	$(call stage,ruff,$(BIN)/ruff check --quiet .)

.PHONY: licenses
licenses: ## Checks the licenses of all crates against deny.toml.
	$(call stage,licenses,$(PYTHON) scripts/check_licenses.py)

.PHONY: test-rust
test-rust: ## Runs the Rust tests.
	$(call stage,Rust tests,cargo test --workspace --locked --quiet --no-fail-fast)

.PHONY: stubs
stubs: wheel ## Proves the type stub of the native module, and type-checks the package.
	$(call stage,stub test,$(BIN)/python -m mypy.stubtest agentlightning._core)
	$(call stage,type check,$(BIN)/python -m mypy)

# Only tests that need Node.js miss this, and they are skipped without it.
NODE_PACKAGES := tests/node/node_modules/ready
$(NODE_PACKAGES): tests/node/package-lock.json
	@if command -v npm >/dev/null; then cd tests/node && npm ci --silent --no-audit --no-fund && touch node_modules/ready; fi

.PHONY: test-python
test-python: wheel model $(NODE_PACKAGES) ## Runs the Python tests, the end-to-end ones included.
	$(call stage,Python tests,$(BIN)/python -m pytest)

.PHONY: openapi
openapi: ## Writes docs/openapi.json anew from the code.
	@AGL_WRITE_OPENAPI=1 cargo test --locked --quiet -p agl-server --test server openapi::the_committed

.PHONY: test-peer
test-peer: $(PEER_VENV)/ready ## Runs 0.3's trainer and 1.0's controller, from PyPI, over our server. ONLY=part: one of them.
	@cargo build --locked --quiet -p agl-cli
	$(call stage,other people's clients,$(PYTHON) scripts/peer/run.py --agl target/debug/agl --peer $(PEER_VENV) \
		--controller $(CONTROLLER_VENV) $(if $(ONLY),--only $(ONLY)))

.PHONY: test-frameworks
test-frameworks: wheel ## Runs agents of every framework, newest versions, and prints what was recorded. ONLY=environment: some.
	@$(BIN)/python python/tests/frameworks/matrix.py --wheel $(WHEELS)/*.whl --environments target/frameworks \
		$(if $(ONLY),--only $(ONLY),--update docs/frameworks.md)
	@$(if $(filter-out main,$(ONLY)),true,target/frameworks/main/bin/python -m pytest -q python/tests/test_matrix.py)

.PHONY: test-readers
test-readers: wheel ## Has datasets, TRL and Harbor's models, from PyPI, read our exports.
	$(call stage,readers of training data,$(BIN)/python python/tests/readers/run.py --ours $(BIN) --environments target/readers)

.PHONY: bench-store
bench-store: $(PEER_VENV)/ready ## Measures the store server against 0.3's and updates docs/bench. QUICK=1: a smoke run.
	cargo build --release --locked --quiet -p agl-cli -p agl-bench
	target/release/agl-bench store --peer $(PEER_VENV)/bin/agl $(if $(QUICK),--quick,--out docs/bench)

.PHONY: bench-gateway
bench-gateway: $(PEER_VENV)/ready ## Measures the gateway against 0.3's LiteLLM and 1.0's and updates docs/bench. QUICK=1: a smoke run.
	cargo build --release --locked --quiet -p agl-cli -p agl-bench
	@controller=$$($(PYTHON) scripts/peer/controller_venv.py $(CONTROLLER_VENV)); \
	target/release/agl-bench gateway --peer $(PEER_VENV)/bin/python $${controller:+--controller $$controller/agl-server} \
		$(if $(QUICK),--quick,--out docs/bench)

# A release build of our package, for figures.
BENCH_VENV := target/bench-venv
.PHONY: bench-package
bench-package: $(VENV)/ready
	@test -d $(BENCH_VENV) || $(PYTHON) -m venv $(BENCH_VENV)
	@rm -rf target/bench-wheels && $(BIN)/maturin build --quiet --release --out target/bench-wheels
	@$(BENCH_VENV)/bin/python -m pip install --quiet --requirement requirements/dev.txt
	@$(BENCH_VENV)/bin/python -m pip install --quiet --force-reinstall --no-deps target/bench-wheels/*.whl

.PHONY: bench-agent
bench-agent: bench-package $(PEER_VENV)/ready ## Measures the agent's side against 0.3's and updates docs/bench. QUICK=1: a smoke run.
	@$(PYTHON) scripts/bench/agent.py --ours $(BENCH_VENV)/bin/python --peer $(PEER_VENV)/bin/python \
		$(if $(QUICK),--quick,--out docs/bench)

.PHONY: bench-traces
bench-traces: bench-package $(PEER_VENV)/ready ## Measures our adapters against those of 0.3 and updates docs/bench. QUICK=1: a smoke run.
	@cargo build --release --locked --quiet -p agl-trace --example merge_rate
	@$(PYTHON) scripts/bench_traces/run.py --ours $(BENCH_VENV)/bin/python --peer $(PEER_VENV)/bin/python \
		--merge target/release/examples/merge_rate $(if $(QUICK),--quick,--out docs/bench)

.PHONY: fuzz
fuzz: ## Fuzzes readers, tree and merge, SECONDS_EACH=60 by default. Needs cargo-fuzz and a nightly compiler.
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is needed: cargo install cargo-fuzz --locked" >&2; exit 1; }
	@mkdir -p fuzz/corpus/readers && $(PYTHON) scripts/fuzz_corpus.py crates/agl-trace/tests/fixtures fuzz/corpus/readers
	@for target in readers tree merge; do \
		cargo +nightly fuzz run --fuzz-dir fuzz $$target -- -max_total_time=$(or $(SECONDS_EACH),60) || exit 1; done

.PHONY: audit
audit: ## Runs cargo-deny: advisories, licenses, bans, sources. May need the network.
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is needed: cargo install cargo-deny --locked" >&2; exit 1; }
	cargo deny check

.PHONY: format
format: $(VENV)/ready ## Formats the code.
	cargo fmt --all
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

.PHONY: clean
clean: ## Removes what was built; the model cache stays.
	rm -rf target $(VENV) tests/node/node_modules
