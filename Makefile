# Every target makes its own environment first; nothing needs to be installed but Python 3.11 or newer, and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
COMPAT_READY := .venv-compat/.ready

.PHONY: setup demo test lint bench compat clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[torch,evaluate,mteb,ray,openvino,serve]" --group workshop --group dev
	touch $@

# The chain from the small source model to a searchable index of this environment's documentation: demo/out.
demo: $(READY)
	$(BIN)/python -m demo

# DRAMA_BASE=folder adds the checks that need the published weights.
test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.inference

# A release in an environment with clients that cannot share ours: transformers 4.57, sentence-transformers 5.1 with its
# ONNX backend, FastEmbed, OpenVINO and, where there is npm, transformers.js (whose packages bring all that they need).
compat: $(READY) $(COMPAT_READY)
	COMPAT_PYTHON=$(CURDIR)/.venv-compat/bin/python $(BIN)/python -m pytest -q tests/compat

$(COMPAT_READY): Makefile
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet "torch==2.13.0" "transformers==4.57.6" "sentence-transformers==5.1.2" \
		"optimum-onnx[onnxruntime]==0.1.0" "fastembed==0.9.1" "openvino==2026.4.1"
	if command -v npm > /dev/null; then npm install --prefix .venv-compat --ignore-scripts --no-audit --no-fund \
		--loglevel=error --fetch-timeout=60000 --fetch-retries=1 @huggingface/transformers@4.3.1 \
		|| echo "npm could not install transformers.js; it will be listed as not installed"; fi
	touch $@

# What was made, not what it was made with: environments and the source model's checkpoints stay.
clean:
	rm -rf demo/out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +
