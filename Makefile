# Every target but clean first makes $(VENV) and installs requirements.txt into it; a second time costs nothing.
# PYTHON lists the interpreters to try, in this order:  make PYTHON=/opt/python3.12/bin/python3 demo
VENV ?= .venv
PYTHON ?= python3.11 python3.12 python3
PY := $(VENV)/bin/python
STAMP := $(VENV)/requirements.installed

.PHONY: help demo test fuzz lint clean
.NOTPARALLEL:  # `make -j lint test` still ends with pytest's summary, and the demo's timing is its own
.DELETE_ON_ERROR:

help:
	@echo "make demo    synthetic data, training, evaluation, pictures (10 minutes on 2 CPU cores); all under demo/"
	@echo "make test    the tests"
	@echo "make fuzz    20,000 damaged and hostile files, other ones each time, through every reader; make fuzz FILES=1000"
	@echo "make lint    ruff: rules and formatting"
	@echo "make clean   remove demo/ and caches; data/, external/, weights/ and $(VENV) stay"

demo: $(STAMP)
	@PYTHON="$(PY)" bash tools/demo.sh

test: $(STAMP)
	@$(PY) -m pytest

FILES ?= 20000

fuzz: $(STAMP)
	@FUZZ=$(FILES) $(PY) -m pytest tests/files/test_fuzz.py

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis __pycache__
	find models utils eval tools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that `python -m venv` writes, so an interrupted one is made again.
$(VENV)/bin/pip:
	@found=; for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "Python 3.11 or 3.12 is needed and '$(PYTHON)' is not: install one, or give its path: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	rm -f $(STAMP); "$$found" -m venv $(VENV)

# The stamp is a copy of the list that was installed: a fresh time stamp on the same list installs nothing.
$(STAMP): requirements.txt $(VENV)/bin/pip
	@cmp -s requirements.txt $@ || { \
	    echo "installing requirements.txt into $(VENV) (minutes, the first time)"; \
	    PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -q -r requirements.txt; \
	}
	@cp requirements.txt $@.new && mv $@.new $@
