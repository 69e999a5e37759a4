# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Without bytecode each of the hundreds of starts of a command compiles asyncchatd anew, and pytest all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-nodes test quick coverage lint types layers check bench fuzz alerts pythons picture docs release-rehearsal wheelhouse deb deb-test soak nodes delivery clients public-clients clean

demo: $(STAMP)            ## the whole story on real sockets, in about a minute
	$(BIN)/asyncchatd demo

demo-nodes: $(STAMP)      ## three nodes on one PostgreSQL, one killed and one stopped, in under a minute
	$(BIN)/asyncchatd demo --nodes 3

# For two cores: while slow tests wait, for a daemon's clock, a time-out or a planned stop, another one runs.
WORKERS ?= 4
test: $(STAMP)            ## the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# What is quick does not wait, and each worker reads all tests and has a PostgreSQL of its own.
quick: $(STAMP)           ## the tests that are not slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' --hypothesis-profile fewer

coverage: $(STAMP)        ## the lines that the quick tests do not run; more of them than there were fail it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[coverage]'
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' --cov --cov-report term

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

check: lint types layers test   ## everything CI looks at

bench: $(STAMP)           ## every figure of docs/performance.md but those of 1,000,000 sessions or events; needs wrk
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m bench.sessions
	$(BIN)/python -m bench.keepalives
	$(BIN)/python -m bench.keepalives --rate 100 --pushes 20
	$(BIN)/python -m bench.restoration
	$(BIN)/python -m bench.intake
	$(BIN)/python -m bench.intake --connections 8
	$(BIN)/python -m bench.intake --burst 30000 --connections 1000
	$(BIN)/python -m bench.delivery
	$(BIN)/python -m bench.polls
	$(BIN)/python -m bench.polls --watched 100 1000 10000 100000 --held 2000
	$(BIN)/python -m bench.notice
	$(BIN)/python -m bench.starting
	$(BIN)/python -m bench.storm
	$(BIN)/python -m bench.growth --sizes 1000 10000 100000

SECONDS ?= 60
fuzz: $(STAMP)            ## every property with many examples, and coverage-guided fuzzing of every parser for SECONDS
	$(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile many
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

alerts: $(STAMP)          ## what Prometheus says of etc/alerts.yml and of the dashboard's queries
	.ci/alerts

pythons: $(STAMP)         ## the quick tests on every further Python, and with the lowest dependencies
	.ci/pythons

picture: $(STAMP)         ## who imports whom, drawn into docs/architecture.md
	$(BIN)/python tests/architecture.py

docs: $(STAMP)            ## a site of these documents in build/site; a broken link fails it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site

release-rehearsal: $(STAMP)   ## a release up to the upload
	.ci/release-rehearsal

wheelhouse: $(STAMP)      ## the wheel of this tree and of all it needs, for hosts without internet: build/wheelhouse
	rm -rf build/wheelhouse build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheelhouse '.[postgresql]'

deb: wheelhouse           ## the Debian package, on Debian: build/deb
	.ci/deb

deb-test: wheelhouse      ## the Debian package in a Debian 12 of its own: built, judged, installed, run, upgraded, purged; as root
	.ci/deb-test

soak: $(STAMP)            ## five minutes of random faults; SOAK="--seed 7 --hours 8" for more
	PYTHONPATH=tests $(BIN)/python -m soak $(SOAK)

nodes: $(STAMP)           ## three nodes on one PostgreSQL, of which any may die; NODES="--rounds 30 --seed 7" for more
	PYTHONPATH=tests $(BIN)/python -m soak.nodes $(NODES)

delivery: $(STAMP)        ## ten minutes of events while the chat application and the daemon are killed; DELIVERY="--minutes 2" for less
	PYTHONPATH=tests $(BIN)/python -m soak.delivery $(DELIVERY)

clients: $(STAMP)         ## five minutes of chat clients while Chat Servers and the daemon are killed; CLIENTS="--minutes 2" for less
	PYTHONPATH=tests $(BIN)/python -m soak.clients $(CLIENTS)

public-clients: $(STAMP)  ## public chat clients through the gateway; FETCHED is the directory they were fetched to (tests/clients/README.md)
	PYTHONPATH=tests $(BIN)/python -m clients.run $(FETCHED)

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asyncchatd needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
