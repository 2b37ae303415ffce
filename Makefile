# Every target but clean first makes $(VENV) and installs requirements.txt into it; a second time costs nothing.
# PYTHON lists the interpreters to try, in this order:  make PYTHON=/opt/python3.12/bin/python3 demo
VENV ?= .venv
PYTHON ?= python3.11 python3.12 python3
PY := $(VENV)/bin/python
STAMP := $(VENV)/requirements.installed
PACKAGES := models utils prepare train eval tools tests benchmarks
# What no file may name: hosts of packages, and folders of one machine.
PLACES := \b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.)|(?<![\w.*}/-])/(work|root|home|Users)/
# The tests of a file share what they prepare, so a file stays on one core.
PYTEST := $(PY) -m pytest -q -n auto --maxprocesses 8 --dist loadfile

.PHONY: help demo test test-all fuzz mutants gpu-data lint clean
.NOTPARALLEL:  # `make -j lint test` still ends with pytest's summary, and the demo's timing is its own
.DELETE_ON_ERROR:

help:
	@echo "make demo      synthetic data, training, evaluation, images (5 minutes on 2 CPU cores); all under demo/"
	@echo "make test      the tests (5 minutes on 2 CPU cores)"
	@echo "make test-all  the same with the slow ones: kill -9, damaged files, pages in a browser"
	@echo "make fuzz      20,000 damaged and hostile files, other ones each time, through every reader; make fuzz FILES=1000"
	@echo "make mutants   some 200 faults put into the code, one at a time: how many do the tests notice? (25 minutes on 2 CPU cores)"
	@echo "make gpu-data  shapes at 480 x 480 in data/gpu_check (16 MB), for benchmarks/gpu_check.py on a machine without a network"
	@echo "make lint      ruff: rules and formatting; import-linter: which room may import which; files up to 400 lines; no path of one machine"
	@echo "make clean     remove demo/ and caches; data/, external/, weights/ and $(VENV) stay"

demo: $(STAMP)
	@PYTHON="$(PY)" bash tools/demo.sh

test: $(STAMP)
	@$(PYTEST)

test-all: $(STAMP)
	@$(PYTEST) -m ""

FILES ?= 20000

fuzz: $(STAMP)
	@FUZZ=$(FILES) $(PY) -m pytest -q -m fuzz tests/files

# cosmic-ray and the 18 packages that it brings are for this target alone.
mutants: $(STAMP)
	@$(PY) -m pip install -q --disable-pip-version-check cosmic-ray==8.7.0
	@$(PY) tools/mutants.py

GPU_DATA := data/gpu_check

gpu-data: $(STAMP)
	@$(PY) tools/make_shapes.py --root $(GPU_DATA) --image_size 480 --images 48 --val_images 6 --test_images 1
	@$(PY) build_vocab.py -d unc --root $(GPU_DATA)
	@$(PY) build_batches.py -d unc -t train --img-size 480 --root $(GPU_DATA)
	@$(PY) build_batches.py -d unc -t val --img-size 480 --root $(GPU_DATA)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo --no-cache
	@find *.py $(PACKAGES) -name "*.py" -exec wc -l {} + | \
	    awk '$$1 > 400 && $$2 != "total" { print $$2 ": " $$1 " lines, more than 400"; long = 1 } END { exit long }'
	@! grep -rnP '$(PLACES)' $(PACKAGES) docs .ci .github *.py *.md *.txt *.toml *.yaml */README.md \
	    --include='*.py' --include='*.md' --include='*.sh' --include='*.toml' --include='*.txt' --include='*.y*ml'

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis __pycache__
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that `python -m venv` writes, so an interrupted one is repeated.
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
