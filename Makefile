# make demo    real data, a fitted model beside its baselines, recommendations, a report
# make test    the test suite
# make clean   removes what these two made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints/ci.txt
# a short schedule: ten minutes on two cores, all included; `make demo FIT=` takes the defaults
FIT ?= --set epochs=8

.PHONY: demo test docs clean

demo: $(VENV)/installed
	test -e demo/movielens-100k || $(BIN)/asymrec data movielens-100k -o demo/movielens-100k
	$(BIN)/asymrec fit demo/movielens-100k -o demo/run --resume $(FIT)
	$(BIN)/asymrec recommend demo/run --user 1 --user 2 --user 3 --user 4 --user 5
	@echo
	@echo "The report of this run: demo/run/report.html"

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

docs: $(VENV)/installed
	$(BIN)/python -m asymrec.reference docs

clean:
	rm -rf $(VENV) demo build src/*.egg-info .pytest_cache .hypothesis .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints/ci.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints/ci.txt | $(BIN)/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/installed
