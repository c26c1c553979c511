# What a person types and what CI runs. Every target sets up by itself: `.venv` is made from the hashed lock.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check bench lock format clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements-uv.lock requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/reinforce demo --output demo

test: setup
	$(BIN)/python -m pytest -m "not serial" --numprocesses auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -m serial

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .venv/site

bench: setup
	$(BIN)/python -m tests.benchmarks

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lock names hashes and no index: it installs from whatever index is configured.
lock: setup
	echo uv | $(BIN)/uv pip compile - --generate-hashes --no-emit-index-url --universal --python-version 3.11 --no-header --quiet --output-file requirements-uv.lock
	$(BIN)/uv pip compile pyproject.toml --group dev --generate-hashes --no-emit-index-url --universal --python-version 3.11 --no-header --quiet --output-file requirements.lock

clean:
	rm -rf .venv demo
