# make serve   set everything up and answer on 127.0.0.1:8000 (HTTP), 8001 (gRPC), 8002 (metrics)
# make deploy  apply what was changed in serve_config.yaml to the running server
# make test    set everything up and run the tests
# make test-e2e  all end-to-end tests: limits, bad clients, changes under load, kill -9 (a quarter of an hour)
# make check   lint, format, types, import contracts, generated code, the README's figures
# make fuzz    fuzz the native transport for SECONDS=60 a target; make sanitize runs it under the sanitizers
# make bench   list the benchmarks; make bench NAME=fraud runs one
# make lock    resolve requirements/*.in into the pinned locks
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
PYTEST_ARGS ?=
# A real server answers in each of these; the rest of tests/e2e (limits, overload of bad clients, changes under load, kill -9) is `make test-e2e`.
E2E := $(addprefix tests/e2e/test_,health.py fraud_http.py fraud_grpc.py fraud_records.py oip_clients.py model_control.py http.py)
TESTS := tests/unit tests/architecture tests/integration $(E2E)

stamp = $(VENV)/.$(1)-$(shell sha256sum requirements/$(1).txt | cut -c1-16)
SERVE_STAMP := $(call stamp,serve)
DEV_STAMP := $(call stamp,dev)

# Ray: workers at the shell's priority, no usage report, and the token that `serve deploy` needs as well.
RAY_ENV := RAY_AUTH_MODE=token RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

.PHONY: serve deploy test test-e2e check bench lock protos load-generator native node-packages fuzz sanitize clean
.DEFAULT_GOAL := serve

serve: $(SERVE_STAMP) native
	@echo "==> starting (the first start compiles the models' trees: about a minute)"
	@exec env $(RAY_ENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/serve run $(CONFIG)

deploy: $(SERVE_STAMP)
	@env $(RAY_ENV) $(BIN)/serve deploy $(CONFIG)

test: $(DEV_STAMP) native load-generator node-packages
	@echo "==> tests"
	@env $(RAY_ENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest $(TESTS) $(PYTEST_ARGS)

test-e2e: TESTS := tests/e2e
test-e2e: test

check: $(DEV_STAMP)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import contracts"
	@$(BIN)/lint-imports --no-cache
	@echo "==> generated code"
	@$(BIN)/python protos/generate.py --check
	@echo "==> figures"
	@$(BIN)/python -m benchmarks.readme_tables --check

bench: $(DEV_STAMP) native load-generator
	@env $(RAY_ENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmarks $(NAME)

$(SERVE_STAMP): requirements/serve.txt | $(BIN)/python
	@echo "==> installing the server's packages (once; one to two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/serve.txt
	@rm -f $(VENV)/.serve-*; touch $@

$(DEV_STAMP): requirements/dev.txt | $(BIN)/python
	@echo "==> installing the packages of tests and benchmarks (once; about two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/dev.txt
	@rm -f $(VENV)/.dev-*; touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python is {v[0]}.{v[1]}; allowed 3.11 and 3.12: make PYTHON=python3.12")'
	@echo "==> making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

load-generator:
	@$(MAKE) --no-print-directory -C benchmarks/load

# The native gRPC transport; where it cannot be built, one line says why, and grpc.aio serves.
native: | $(BIN)/python
	@sh requirements/debian.sh $(if $(wildcard $(DEV_STAMP)),dev,serve)
	@$(BIN)/python -m kernels.transport.build

# Node's gRPC client, one of those that the transport is tested with; skipped where there is no npm.
node-packages:
	@command -v npm >/dev/null || exit 0; [ -d .build/node/node_modules/@grpc/grpc-js ] || \
	  npm install --silent --no-audit --no-fund --prefix .build/node @grpc/grpc-js@1.14.7 || true

fuzz:
	@sh requirements/debian.sh check
	@$(MAKE) --no-print-directory -C kernels/transport/check fuzz SECONDS=$(or $(SECONDS),60)

sanitize: $(DEV_STAMP)
	@sh requirements/debian.sh check
	@$(MAKE) --no-print-directory -C kernels/transport/check sanitize SECONDS=$(or $(SECONDS),10)
	@sh kernels/transport/check/binding.sh $(abspath $(BIN)/python)

protos: $(DEV_STAMP)
	@$(BIN)/python protos/generate.py

lock: | $(BIN)/python
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate requirements/serve.in -o requirements/serve.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate -c requirements/serve.txt requirements/dev.in -o requirements/dev.txt

clean:
	@rm -rf .build .mypy_cache .ruff_cache .hypothesis
