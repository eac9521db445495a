# Two commands do everything on a machine with Python 3.11 and make: `make reproduce` and `make test`.
# Both make .venv and install into it, or use the one that is there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PROFILE ?= quick

.PHONY: reproduce test lint notebooks clean

reproduce: .venv/.installed
	$(BIN)/iadd-lab reproduce --profile $(PROFILE)

test: .venv/.installed-dev lint
	$(BIN)/python -m pytest tests
	# In a copy, so that the notebooks compute everything anew and leave the runs of `make reproduce` alone.
	rm -rf build/nbval && mkdir -p build/nbval && cp -r notebooks build/nbval/
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider \
	    build/nbval/notebooks

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch .venv/.installed $@

# Executes the notebooks in place and keeps only the outputs that nbval compares; run it after changing one.
notebooks: .venv/.installed-dev
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute \
	    --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/jupyter nbconvert --to notebook --inplace --TagRemovePreprocessor.enabled=True \
	    --TagRemovePreprocessor.remove_all_outputs_tags=nbval-ignore-output notebooks/*.ipynb

clean:
	rm -rf .venv build dist *.egg-info
