# Everything happens in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,docs,box2d,driving,export,hub,keras,minari,mujoco,multiagent,opencv,resources,robots
BIN := $(abspath $(VENV))/bin

# Test files are spread over this many processes: one more than cores, since many tests wait for a process of theirs.
JOBS ?= $(shell echo $$(($$(nproc) + 1)))

.PHONY: install demo test test-fast coverage check rliable bench docs schema clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/rldistill run examples/pong.yaml --resume
	@echo "The report: $(CURDIR)/runs/pong/report.html"

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The inner loop: no emulator, no training, no subprocess.
test-fast: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow"

coverage: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov=rldistill --cov-report=term

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# What the statistics are compared with; it needs pandas < 3, so it has an environment of its own.
rliable: .venv-rliable/.installed

.venv-rliable/.installed: constraints-rliable.txt
	$(PYTHON) -m venv .venv-rliable
	.venv-rliable/bin/python -m pip install --quiet --constraint constraints-rliable.txt rliable
	touch $@

# docs/benchmarks.md, in hours; `benchmarks/page.py NAME` repeats one of its sections.
bench: install
	$(BIN)/python benchmarks/page.py

# The site, readable without a server or a network; a broken link or a page outside of the navigation is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "Open site/index.html"

# The pages of all settings of run files, generated from the code.
schema: install
	$(BIN)/rldistill schema > docs/run.schema.json
	$(BIN)/rldistill schema --markdown > docs/configuration.md

clean:
	rm -rf .venv* build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
