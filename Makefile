# walrusds: `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Kubo version to build or to build for. Left out, `make install` asks the ipfs program itself.
IPFS_VERSION ?=
# The version to use where one is needed and none is given.
KUBO_DEFAULT := v0.43.0
# The Kubo versions for `make kubo-matrix`. Left out: those that the README calls tested.
VERSIONS ?=
CARGO ?= cargo
GO ?= go
export GO CARGO
# The parts of make test and make test-full that are to run. Left out, all.
PART ?=
export PART

kubo_version := $(or $(IPFS_VERSION),$(KUBO_DEFAULT))

##@ Building

.PHONY: build
build: ## the engine (library, header) and the local Walrus
	$(CARGO) build --release --locked -p walrusds -p walrus-devnet

.PHONY: kubo
kubo: build ## ipfs with walrusds built in: build/kubo-<version>/ipfs  [IPFS_VERSION=vX.Y.Z | /path/to/kubo]
	@scripts/kubo-build.sh $(kubo_version)

.PHONY: kubo-plain
kubo-plain: ## an ordinary ipfs, to try the external plugin with  [IPFS_VERSION=...]
	@scripts/kubo-build.sh --plain $(kubo_version)

.PHONY: plugin
plugin: build ## the external plugin  [IPFS_VERSION=vX.Y.Z | /path/to/kubo | /path/to/ipfs]
	@scripts/plugin-build.sh $(kubo_version)

.PHONY: cli
cli: ## the operator's command: target/release/walrusds (docs/command.md)
	$(CARGO) build --release --locked -p walrusds-cli

.PHONY: kubo-datastore
kubo-datastore: ## what reads Kubo's other datastores for walrusds import: target/release/walrusds-kubo-datastore
	@scripts/kubo-datastore.sh build

##@ Installing

.PHONY: install
install: build ## the plugin into $IPFS_PATH/plugins, tried first  [IPFS=/path/to/ipfs] [IPFS_VERSION=...]
	@scripts/plugin-install.sh $(IPFS_VERSION)

.PHONY: install-dynamic
install-dynamic: build ## the same with the engine as a library of its own, in $IPFS_PATH/lib
	@scripts/plugin-install.sh --dynamic $(IPFS_VERSION)

.PHONY: install-cli
install-cli: cli ## the operator's command, its manual pages and completions  [PREFIX=~/.local]
	@scripts/cli-install.sh

##@ Trying

.PHONY: demo
demo: ## a node on a local Walrus, from init to garbage collection
	@scripts/demo.sh

##@ Developing

.PHONY: test
test: ## the tests, 12 minutes at most once built  [PART=name,... for some of them alone]
	@scripts/test.sh

.PHONY: test-full
test-full: ## the longer tests  [PART=...]
	@scripts/test.sh --full

.PHONY: conformance
conformance: build ## go-datastore's own suite and our tests of its contract  [CONFORMANCE_SHORT=1]
	@scripts/conformance.sh

.PHONY: citus
citus: ## the index on a Citus cluster, where PostgreSQL has the extension  [WALRUSDS_TEST_CITUS=URL] [PART=...]
	@scripts/citus.sh

.PHONY: kubo-matrix
kubo-matrix: build ## Kubo nodes of five versions, built in and external  [VERSIONS="vX.Y.Z ..."]
	@scripts/kubo-matrix.sh $(VERSIONS)

.PHONY: kubo-own
kubo-own: build ## Kubo's own end-to-end tests, every repo on walrusds  [IPFS_VERSION=vX.Y.Z]
	@scripts/kubo-own.sh $(kubo_version)
	@scripts/kubo-own.sh --flatfs $(kubo_version)

.PHONY: fuzz
fuzz: ## search for inputs that fail, with libFuzzer  [FUZZ_SECONDS=60 for each target]
	@scripts/fuzz.sh

.PHONY: mutants
mutants: ## changes to the engine's code that no test notices, as many as fit  [MUTANTS_MINUTES=60] [MUTANTS_FILES=...]
	@scripts/mutants.sh

.PHONY: interleavings
interleavings: ## the engine's concurrent parts in many schedules of their threads  [SCHEDULES=20 times as many]
	@scripts/interleavings.sh

.PHONY: check
check: ## formatting, lints, and that the committed header is the generated one
	@scripts/check.sh

.PHONY: bench
bench: ## walrusds beside Kubo's own datastores, ~25 minutes  [BENCH_ONLY=add,gc] [BENCH_ROUNDS=3] [UPDATE=1]
	@scripts/bench.sh

.PHONY: lifetime-measure
lifetime-measure: ## what lifetimes cost: due blobs of 10 million, renewal at a time, undo, the ledger; minutes, and 10 GB of disk
	@$(CARGO) test --release --locked --test lifetime_measure -- --ignored --nocapture --test-threads=1

.PHONY: index-scale
index-scale: ## one PostgreSQL with many rows, and the same in partitions, an hour  [ROWS="1000000 5000000 20000000"] [PARTITIONS="0 16"]
	@scripts/index-scale.sh

.PHONY: chaos
chaos: ## a million writes under faults and crashes: nothing lost, nothing wrong  [CHAOS_SEED=...]
	@scripts/chaos.sh

.PHONY: lifetime-sim
lifetime-sim: ## two years of a node in minutes: nothing lost, and what it cost  [STRICT=1] [SIM_SEED=...]
	@scripts/lifetime-sim.sh $(if $(STRICT),--strict)

.PHONY: outages
outages: ## every outage of the real parts, and the table of docs/reliability.md  [UPDATE=1]
	@scripts/outages.sh

.PHONY: deps
deps: ## what the build needs: looks, and installs what is missing where it can
	@scripts/deps.sh

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build go-shim/walrusds_lib_hash.h
	$(CARGO) clean

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nIPFS_VERSION defaults to %s. Details: the first lines of set-target.sh and scripts/*.sh.\n' $(KUBO_DEFAULT)
