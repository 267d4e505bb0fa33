# make demo   index a real corpus, ask, edit, delete (needs Rust; installs what else is missing)
# make test   everything that is checked before a change lands
# make bench  the benchmarks, with their peers where those can be installed
# make fuzz   every decoder on 100,000 mutated inputs
# make torture  the long runs of everything that attacks the state; writes docs/RELIABILITY.md
# make services       PostgreSQL, Kafka, Debezium and a schema registry on loopback, to try things
#                     with; their ports are in target/services/ports.env (SERVICES names another folder)
# make services-down  ends them; their data stay for the next start

.PHONY: demo test lint bench fuzz torture schema build setup services services-down

demo: setup
	cargo build --release --package vectide-app --package vectide-demo
	./target/release/vectide-demo target/demo

build: setup
	cargo build --release --package vectide-app

setup:
	@scripts/setup.sh build

lint:
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release --package vectide-cuda --features verify --all-targets -- -D warnings

test:
	@scripts/setup.sh test
	$(MAKE) lint
	scripts/deny.sh
	cargo test --release --workspace

schema:
	cargo run --quiet --release --package vectide-app -- schema > configs/vectide.schema.json

bench: setup
	scripts/bench.sh

fuzz: setup
	scripts/fuzz.sh 100000

torture:
	@scripts/setup.sh test
	scripts/torture.sh

SERVICES ?= target/services

services:
	@scripts/setup.sh test
	scripts/services.sh up "$(SERVICES)"
	@cat "$(SERVICES)/ports.env"

services-down:
	scripts/services.sh down "$(SERVICES)"
