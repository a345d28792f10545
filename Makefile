# make demo    the whole way on generated data, to a trained model, on four local nodes, one of which is killed half-way
# make test    every test; test-fast leaves out those that start processes
# make check   what a reviewer would run first: style, layers, types; CUDA sources are compiled where there is nvcc
# make bench   fourteen workloads beside Dask DataFrame, PySpark, Ray Data, DuckDB, Polars and Daft; exchanges; planning.
#              Everything is installed in .venv-bench; PySpark needs Java
# make bench-recovery   what killed nodes, slow workers and a killed scheduler cost, beside Dask DataFrame
# make bench-scaling   four times the rows under one memory limit, a second worker, a combiner, PageRank on links that lie right
# make bench-training   a training step and kills beside PyTorch's DDP, and the RDD paper's experiments
# make chaos   pipelines under random schedules of faults, compared byte by byte: 200 with shuffles, 100 that train,
#              and 25 that train with sharded optimizer state
# make check-cuda   compiles CUDA sources as CuPy does, by NVRTC, and compares what stands for CuPy in tests with CuPy
# make gpu     on a machine with a GPU, CuPy and PyTorch, without internet: tests of everything that runs on it, and
#              benchmarks, a table last, in GPU_SECONDS. Other packages may come as wheels in a folder: make gpu WHEELS=wheels
# make wheels  that folder, made where there is internet, for Python GPU_PYTHON
# make clean   everything that these targets made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
BENCH := .venv-bench
WORKERS ?= 4

.PHONY: demo test test-fast check check-cuda format bench bench-recovery bench-training bench-scaling chaos wheels gpu clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra: pip runs again only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[$*]'
	@touch $@ $(VENV)/.installed

# Other engines have a virtual environment of their own: what they pin is nothing to the tests.
$(BENCH)/.installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[bench]'
	@touch $@

demo: $(VENV)/.installed
	@rm -rf .demo
	@$(BIN)/headwater demo --workers $(WORKERS) --output .demo/rides --report-json .demo/report.json

# how many tests run at once
TESTS ?= 2

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(TESTS)

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(TESTS) -m "not cluster and not fault and not slow"

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	@mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/headwater
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p headwater
	$(BIN)/python tests/emulation/compile_sources.py

format: $(VENV)/.installed-check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)/.installed
	$(BENCH)/bin/python benchmarks/compare.py --docs docs/benchmarks.md
	$(BENCH)/bin/python benchmarks/exchange.py
	$(BENCH)/bin/python benchmarks/planning.py

bench-recovery: $(BENCH)/.installed
	$(BENCH)/bin/python benchmarks/recovery.py
	$(BENCH)/bin/python benchmarks/backups.py
	$(BENCH)/bin/python benchmarks/overhead.py
	$(BENCH)/bin/python benchmarks/loop.py

bench-scaling: $(BENCH)/.installed
	$(BENCH)/bin/python benchmarks/scaling.py
	$(BENCH)/bin/python benchmarks/combiner.py
	$(BENCH)/bin/python benchmarks/pagerank.py

bench-training: $(VENV)/.installed-test
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/rdd_training.py

RUNS ?= 200
TRAINING_RUNS ?= 100
SHARDED_RUNS ?= 25
SEED ?= 1
chaos: $(VENV)/.installed
	@rm -rf .chaos && mkdir .chaos
	$(BIN)/python tests/fault/pipelines.py .chaos/inputs
	$(BIN)/headwater chaos tests/fault/pipelines.py --param inputs=.chaos/inputs --runs $(RUNS) --seed $(SEED) --json .chaos/runs.json
	$(BIN)/python tests/fault/training_pipeline.py .chaos/training
	$(BIN)/headwater chaos tests/fault/training_pipeline.py --param inputs=.chaos/training --steps 84 --runs $(TRAINING_RUNS) --seed $(SEED) --json .chaos/training.json
	$(BIN)/headwater chaos tests/fault/training_pipeline.py --param inputs=.chaos/training --param sharded=true --steps 84 --runs $(SHARDED_RUNS) --seed $(SEED) --json .chaos/sharded.json

# A machine with a GPU has CuPy and PyTorch already, for its own driver: they stay as they are.
GPU_SITE := .gpu
WHEELS ?= wheels
GPU_PYTHON ?= 3.12
GPU_ROWS ?= 20000000
GPU_SECONDS ?= 570
wheels:
	$(PYTHON) -m pip --disable-pip-version-check --quiet download --only-binary=:all: --python-version $(GPU_PYTHON) --dest $(WHEELS) \
	    $$($(PYTHON) -c "import tomllib; of = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	    print(*(d for d in of['dependencies'] + of['optional-dependencies']['test'] if 'torch' not in d))")

gpu:
	@mkdir -p $(GPU_SITE) && ln -sfn .. $(GPU_SITE)/headwater
	@if ls $(WHEELS)/*.whl >/dev/null 2>&1; then \
	    $(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $(GPU_SITE) $(WHEELS)/*.whl; fi
	PYTHONPATH=$(GPU_SITE) $(PYTHON) benchmarks/gpu_all.py --rows $(GPU_ROWS) --seconds $(GPU_SECONDS)

# CuPy, NVRTC and CUDA's runtime have an environment of their own; none of them needs a device here.
CUDA := .venv-cuda
$(CUDA)/.installed:
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python -m pip --disable-pip-version-check --quiet install 'cupy-cuda12x==14.0.*' \
	    'nvidia-cuda-nvrtc-cu12==12.9.*' 'nvidia-cuda-runtime-cu12==12.9.*'
	@touch $@

check-cuda: $(CUDA)/.installed $(VENV)/.installed-test
	@mkdir -p $(GPU_SITE) && ln -sfn .. $(GPU_SITE)/headwater && rm -rf $(CUDA)/sources
	CUPY_CACHE_DIR=$(CURDIR)/$(CUDA)/sources $(BIN)/python -m pytest -q -n $(TESTS) tests/gpu
	PYTHONPATH=$(GPU_SITE) $(CUDA)/bin/python tests/emulation/compile_sources.py --nvrtc $(CUDA)/sources
	$(CUDA)/bin/python tests/emulation/compare_api.py

clean:
	rm -rf $(VENV) $(BENCH) $(CUDA) wheels build dist *.egg-info .demo .bench .chaos .gpu
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
