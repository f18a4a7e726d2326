# What a developer and CI run. It needs Python 3.11 or newer and, the first time, a package index for pip.
#
#   make run      the kitchen from raw text to the report, with ARGS for more: make run ARGS="--seed 1"
#   make test     all tests that need only the environment, in at most four minutes on two cores
#   make test-interop  the others: TRL, Label Studio (both are installed at the first time), PostgreSQL, Chromium, and
#                 whatever takes long
#   make lint     style and types
#   make bench    our speed beside that of transformers and TRL, written to docs/results/benchmarks-cpu.md
#   make course   the models of the course, and its lessons executed as notebooks and pages, in at most 12 minutes
#   make docs     the pages that are written from the code
#   make site     the documentation as a site, in site/, with the lessons' outputs after make course; a dead link or a page
#                 that is not in the navigation fails
#   make dist     the wheel and the source distribution, in dist/
#   make screenshots  the pictures of the studio that are in the docs, taken again (needs Chromium)
#
# PYTHON names another interpreter. TORCH_ARGS goes to pip when it installs torch: on Linux the default build brings
# gigabytes of CUDA along, and PyTorch's own index offers a CPU-only one (CONTRIBUTING.md).

PYTHON ?= python3
TORCH_ARGS ?=
ARGS ?=
BIN := .venv/bin
PIP := @$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: run test test-interop lint format bench course docs site dist screenshots clean

run: $(INSTALLED)
	$(BIN)/wukong run kitchen $(ARGS)

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not interop" $(ARGS)

test-interop: $(INSTALLED)
	$(PYTEST) -m "slow or interop" $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	PYTHON=$(BIN)/python benchmarks/speed/tables.sh cpu docs/results/benchmarks-cpu.md

course: $(INSTALLED)
	$(BIN)/python course/build.py $(ARGS)

docs: $(INSTALLED)
	COLUMNS=100 $(BIN)/python -c "from wukong.cli import reference; print(reference(), end='')" > docs/reference/cli.md
	COLUMNS=100 $(BIN)/python -c "from wukong.cli import reference; print(reference('zh'), end='')" > docs/reference/cli.zh.md
	$(BIN)/python -m wukong.report.terms docs > src/wukong/report/terms.json.new && \
		mv src/wukong/report/terms.json.new src/wukong/report/terms.json
	$(BIN)/python -m wukong.training.metric_definitions > docs/reference/metrics.md
	$(BIN)/python -m wukong.training.metric_definitions zh > docs/reference/metrics.zh.md

# NO_MKDOCS_2_WARNING silences an advertisement of mkdocs-material. The last line fails if a page loads anything from
# another host.
site: $(DOCS_INSTALLED)
	$(BIN)/python course/build.py --pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@! grep -rnoE --include='*.html' '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//[^" >]+\.(js|css|woff2?|png|svg|json)' site

dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build

screenshots: $(INSTALLED)
	$(BIN)/python benchmarks/studio/screenshots.py --only $(basename $(notdir $(wildcard docs/pictures/studio/*.png)))

clean:
	rm -rf .venv site dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Done anew only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "wukong needs Python 3.11 or newer: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@echo "[1/3] the environment in .venv"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "[2/3] PyTorch: the largest part, 0.2 GB for the CPU and several with CUDA"
	$(PIP) $(TORCH_ARGS) torch
	@echo "[3/3] the package and what it needs"
	$(PIP) -e '.[dev]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@
