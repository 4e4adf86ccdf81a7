# make demo   the main job on real data: fit, compare, check, simulate; two minutes once installed
# make test   lint, types and the whole test suite
# make clean  what was built and written here (the environment .venv stays; remove it by hand)
#
# PYTHON=python3.12 chooses the interpreter, PIP_ARGS="..." goes to pip (an index, a cache).

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= nlmegen-out/demo
SOURCES := pyproject.toml constraints.txt hatch_build.py
# every matrix of a small population fits one core: more threads only wait for each other
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/nlmegen fit theophylline theophylline --method elbo --compare focei --seed 1 --out $(OUT) --force --progress plain
	$(BIN)/nlmegen vpc $(OUT) --draws 1000
	$(BIN)/nlmegen simulate $(OUT) --n 500 --regimen "320 every 24 x 7" --times "0:168:2" --covariates theophylline --seed 7 --out $(OUT)/cohort.csv
	@echo
	@echo "report                    $(OUT)/report.html"
	@echo "figures                   $(OUT)/figures/"
	@echo "tables                    $(OUT)/parameters.csv individuals.csv predictions.csv vpc.csv"
	@echo "both methods              $(OUT)/comparison.csv, the FOCEI fit in $(OUT)/compare-focei/"
	@echo "500 virtual patients      $(OUT)/cohort.csv"

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict nlmegen
	$(BIN)/mypy models
	$(BIN)/pytest --numprocesses 2 --dist worksteal

clean:
	rm -rf build dist nlmegen-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nlmegen tests models benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "nlmegen needs Python 3.11 or newer: there is no $(PYTHON) here; try: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nlmegen needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	@echo "installing nlmegen into $(VENV) (the first time: a few minutes, torch is large)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[fast]"
	@touch $@

$(VENV)/.installed-test: $(SOURCES) | $(VENV)/bin/python
	@echo "installing nlmegen and its test tools into $(VENV) (the first time: a few minutes, torch is large)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[fast,test]"
	@touch $@ $(VENV)/.installed
