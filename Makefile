# Every target makes what it needs, from a bare checkout on. Nothing is installed outside .venv
# but system packages, and those only by root on Debian; else the one command is named.
#
#   make demo       everything on loopback with real traffic        make test       the suite
#   make bench      figures of this machine, on one page            make fuzz       longer, random
#   make torture    real processes killed, stopped and partitioned for ten minutes, then compared;
#                   SECONDS long, with the faults of SEED
#   make kills      one process: fifty kills, a million records replayed
#   make slo        the time budget of CIP, on a machine with nothing else to do
#   make coverage   lines and branches of flows, protocols and the native core
#   make sim        simulated storms of faults, SECONDS long from SEED on; SECONDS=0: that one only
#   make lint       ruff                make typecheck   mypy, stubtest
#   make sanitize   the native parts under ASan and UBSan           make clean      back to sources

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# One more than there are cores: tests wait for processes and sockets as often as they work.
JOBS ?= $(shell expr 1 + $$(nproc 2>/dev/null || echo 2))
# `make fuzz FUZZ=10` tries ten times as much.
FUZZ ?= 1
# `make sim`: without a seed any will do, it is printed.
SEED ?=
SECONDS ?= 60
# `make bench QUICK=1`: some three minutes instead of an hour.
QUICK ?=

NATIVE := $(wildcard core_ext/*.pyx core_ext/*.pxd bench/*/*.pyx bench/*/*.pxd)
# The requirements of one extra, as pip takes them; so that installing them builds nothing anew.
EXTRA = $(PY) -c "import sys, tomllib; \
	project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print('\n'.join(project['optional-dependencies'][sys.argv[1]]))"
STUBBED = $(subst /,.,$(basename $(wildcard core_ext/*.pyx bench/*/*.pyx)))

.PHONY: demo test bench micro lint typecheck fuzz torture kills slo coverage sim sanitize reference cases clean native
.DEFAULT_GOAL := test

demo: $(VENV)/native
	$(BIN)/troncal demo

# Some processes at once, but for what measures time or needs the machine for itself. Node, which
# some tests ask what others' packages say, lies in the venv.
test: export PATH := $(CURDIR)/$(BIN):$(PATH)
# Hundreds of processes are started, so bytecode is kept, whatever the surroundings say.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/native $(VENV)/test
	@sh tools/browser-package
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not alone"; together=$$?; \
		$(PY) -m pytest -m alone $$(grep -lr --include="*.py" "mark\.alone" tests) && exit $$together

# bench/report.html and .md. PostgreSQL, jPOS and moov-io are measured where their tools are
# (apt install postgresql default-jdk-headless maven golang-go), and else said to be missing.
bench: $(VENV)/native $(VENV)/bench
	$(PY) -m bench.report $(if $(QUICK),--quick) $(if $(RESUME),--resume)

micro: $(VENV)/native $(VENV)/test
	$(PY) -m pytest bench --benchmark-enable --benchmark-disable-gc --benchmark-min-rounds=30

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/native $(VENV)/test $(VENV)/dev
	$(BIN)/mypy
	$(PY) -m mypy.stubtest $(STUBBED)

fuzz: $(VENV)/native $(VENV)/test
	TRONCAL_FUZZ=$(FUZZ) $(PY) -m pytest tests/unit tests/protocols tests/flows -q --timeout=1200

# red, sicoop, ceibo, a payment application and banks under load, with faults of processes and of
# lines.
torture: SECONDS := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),600)
torture: $(VENV)/native $(VENV)/test
	TRONCAL_TORTURE_S=$(SECONDS) TRONCAL_SEED=$(or $(SEED),0) \
		$(PY) -m pytest tests/faults/test_torture.py -q -s

# The time budget of the payment application, on a machine with nothing else to do.
slo: $(VENV)/native $(VENV)/test
	TRONCAL_SLO=1 $(PY) -m pytest tests/e2e/test_cip_load.py -q -s -k "f03 or q01"

# Fifty kills at random moments, and the replay of a million records.
kills: $(VENV)/native $(VENV)/test
	TRONCAL_TORTURE=1 TRONCAL_KILLS=50 TRONCAL_RECORDS=1000000 $(PY) -m pytest \
		tests/faults/test_kill.py tests/faults/test_recovery.py -q -s --timeout=1200

# A build of its own, so that the usual one stays: Python is traced, the native core counts in its C.
# Three processes that end by themselves: a worker of xdist may be killed before it has written its
# figures. Tests that measure time fail now and then under counters; the figures count all the same.
# Some twelve minutes of a processor; what has run after COVERAGE_MINUTES is what is told.
COVERAGE_MINUTES := 45
FAULTS := $(addprefix tests/faults/test_,random_faults.py turns.py simulation.py journal_faults.py \
	saf_drain.py link_interleavings.py cases_p.py cases_s_lines.py cases_cip_crash.py recovery.py \
	transfiya_crashes.py webpay_crashes.py cip_storms.py transfiya_storms.py webpay_storms.py)
COVERED := "tests/unit" "tests/flows" "tests/protocols $(FAULTS)"
COVERAGE := ../../$(PY) -m coverage
COVERAGE_RC = --rcfile=$(CURDIR)/build/coverage/tools/coverage.ini
coverage: $(VENV)/native $(VENV)/test $(VENV)/dev
	rm -rf build/coverage && mkdir -p build/coverage
	tar --exclude=./.venv --exclude=./build --exclude=./.git --exclude='*.so' -cf - . | \
		tar -C build/coverage -xf -
	cd build/coverage && TRONCAL_TRACE=1 ../../$(PY) setup.py -q build_ext --inplace -j $(JOBS)
	cd build/coverage && export PYTHONPATH="$$PWD" && for part in $(COVERED); do \
		timeout --signal=INT --kill-after=60 $(COVERAGE_MINUTES)m $(COVERAGE) run \
			$(COVERAGE_RC) -m pytest -q --timeout=1800 -m "not alone" $$part & \
		done; wait
	cd build/coverage && $(COVERAGE) combine -q $(COVERAGE_RC)
	cd build/coverage && for part in switch/flows protocols; do \
		$(COVERAGE) report $(COVERAGE_RC) --include="$$part/*" --skip-covered; done
	cd build/coverage && ../../$(PY) tools/native_coverage.py build/temp*

sim: $(VENV)/native $(VENV)/test
	$(PY) -m tests.sim $(if $(SEED),--seed $(SEED)) --seconds $(SECONDS)

# A build of its own, so that the usual one stays. Python's own allocations drown the leak checker
# and hide overflows, hence the two switches.
sanitize: $(VENV)/native $(VENV)/test
	rm -rf build/sanitize && mkdir -p build/sanitize
	tar --exclude=./.venv --exclude=./build --exclude=./.git --exclude='*.so' -cf - . | \
		tar -C build/sanitize -xf -
	cd build/sanitize && TRONCAL_SANITIZE=1 \
		../../$(PY) setup.py -q build_ext --inplace -j $(JOBS)
	cd build/sanitize && \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
		PYCRYPTODOME_DISABLE_DEEPBIND=1 \
		../../$(PY) -m pytest -q --timeout=1200 tests/unit tests/protocols \
		tests/flows/test_lanes.py tests/flows/test_host_lane.py tests/flows/test_relay.py

# docs/cases.md: each acceptance case with its tests and layouts, from what pytest collects.
cases: $(VENV)/native $(VENV)/test
	$(PY) -m tests.cases

# The table of all keys at the end of the documentation, from the code.
reference: $(VENV)/native
	sed -i '/^## All keys/q' docs/configuration.md
	$(PY) -c "from switch import config; print('\n' + config.reference(), end='')" \
		>> docs/configuration.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache \
		.benchmarks .coverage* .demo
	find core_ext protocols switch bench tests -name __pycache__ -prune -exec rm -rf {} +
	find core_ext bench \( -name '*.so' -o -name '*.c' \) -delete

native: $(VENV)/native

# The stamps. `installed`: the venv and what we run on, our packages linked to this checkout. Native
# modules are left to the next rule: pip would build them in a place of its own, every time anew.
$(VENV)/installed: pyproject.toml setup.py
	@PYTHON="$(PYTHON)" sh tools/system-packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "setuptools>=77" "Cython>=3.1,<4"
	TRONCAL_ONLY=none $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

# What is older than its sources.
$(VENV)/native: $(VENV)/installed $(NATIVE)
	$(PY) setup.py -q build_ext --inplace -j $(JOBS)
	@touch $@

$(VENV)/test: $(VENV)/installed
	$(EXTRA) test | $(BIN)/pip install -q --disable-pip-version-check -r /dev/stdin
	@touch $@

$(VENV)/bench: $(VENV)/installed
	$(EXTRA) bench | $(BIN)/pip install -q --disable-pip-version-check -r /dev/stdin
	@touch $@

$(VENV)/dev: $(VENV)/installed
	$(EXTRA) dev | $(BIN)/pip install -q --disable-pip-version-check -r /dev/stdin
	@touch $@
