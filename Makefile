# make demo   labels of a classifier with a backdoor before and after, then purified photographs; see demo/labels.png
# make test   everything CI checks: ruff, mypy, the tests
# make test-slow   the tests that take longer than a few seconds each
# make fuzz   10,000 mutated files, arrays, models and commands; interrupted runs resume (state in build/fuzz)
# make soak   20 minutes of mixed and faulty work with flat memory (MINUTES=3 for less)
# make kills  kill a run of zipsdk purify 200 times and compare every file (state in build/kills)
# make dist   wheel and sdist in dist/, checked, installed in a fresh environment of each Python and used there
# make lint   ruff, mypy, codespell and the direction of imports
# make docs   build the documentation into build/site without a warning; open build/site/index.html
# make gpu-check   on a machine with a GPU: kernels, gpu tests, compute-sanitizer, benchmarks, records (QUICK=1 for less)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-slow fuzz soak kills dist docs lint clean gpu-check

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "zipsdk needs Python 3.10 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# one stamp per set of packages, remade when the project's own description of them changes
$(VENV)/demo.stamp: $(BIN)/python pyproject.toml CMakeLists.txt constraints.txt $(wildcard kernels/*)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[cpu,bench]'
	touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml CMakeLists.txt constraints.txt $(wildcard kernels/*)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[cpu,export,bench,peers,dev,docs]'
	$(BIN)/python tests/fakes/cuda/install_pycuda.py
	touch $@

$(VENV)/docs.stamp: $(BIN)/python pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/python -m bench.demo -o demo

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 --no-warn-return-any --no-warn-unused-ignores zipsdk export
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell bench docs export kernels tests zipsdk .ci Makefile CMakeLists.txt pyproject.toml README.md

test: lint
	$(BIN)/python -m pytest -m "not slow" -n logical --dist worksteal --cov --durations=10

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --guided 1000 $(FUZZ)

soak: $(VENV)/test.stamp
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),20) $(SOAK)

kills: $(VENV)/test.stamp
	$(BIN)/python -m tests.tools.kill build/kills $(KILLS)

dist: $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check 'build>=1.2' 'twine>=6'
	rm -rf dist
	$(BIN)/python -m build -o dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.packaging.installs dist/*.whl

# the variable silences a notice about the future of MkDocs
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# with the Python that is there, because the GPU's machine has its own torch and may reach no package index
gpu-check:
	$(PYTHON) -m bench.gpu_check $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
