# Two commands do everything on a machine with Python 3.11 and make: `make reproduce` and `make test`.
# Both make .venv and install into it, or use the one that is there; PYTHON=python3.13 has a folder of its own
# beside a .venv of another version.
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13; do $$each -c "" && echo $$each && exit; done \
    2> /dev/null; echo python3)
VENV := $(if $(filter file,$(origin PYTHON)),.venv,$(shell $(PYTHON) environment.py))
BIN := $(VENV)/bin
PROFILE ?= quick
# Two notebooks at once where each takes one core; the paper's profile takes all cores, or the one GPU.
JOBS ?= $(if $(filter paper,$(PROFILE)),1,2)

.PHONY: reproduce figures lab test test-browser lint docs notebooks clean FORCE

reproduce: $(VENV)/.installed
	$(BIN)/iadd-lab reproduce --profile $(PROFILE) --jobs $(JOBS)

# Copies what `make reproduce` made into figures/, which is committed on purpose.
figures: $(VENV)/.installed
	$(BIN)/iadd-lab reproduce --profile $(PROFILE) --jobs $(JOBS) --keep

# JupyterLab on the notebooks, with the runs that `make reproduce` leaves.
lab: $(VENV)/.installed
	IADD_RUNS=$(CURDIR)/runs $(BIN)/jupyter lab notebooks

# Two test processes, each on its own core: networks this small gain nothing from more threads.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# The longest notebooks first, so that none is left to run alone at the end.
NOTEBOOKS = $(addprefix build/nbval/notebooks/,$(addsuffix .ipynb, \
    $(LONGEST) $(filter-out $(LONGEST),$(sort $(basename $(notdir $(wildcard notebooks/*.ipynb)))))))
LONGEST := table1_benchmarks table2_cross_architecture table3_importance_ablation speed_and_memory quickstart

test: $(VENV)/.installed-dev lint
	$(TEST) --dist loadfile tests
	# In a copy, so that the notebooks compute everything anew and leave the runs of `make reproduce` alone.
	rm -rf build/nbval && mkdir -p build/nbval && cp -r notebooks build/nbval/
	# Bars that move every 10 s: nbval reads a cell's messages when it ends, and ZeroMQ keeps 1,000 of them.
	TQDM_MININTERVAL=10 IADD_RUNS=$(CURDIR)/build/nbval/runs $(TEST) --dist loadfile --no-loadscope-reorder \
	    -p no:cacheprovider --nbval --nbval-current-env --nbval-cell-timeout=1800 $(NOTEBOOKS)

# JupyterLab in a headless Chromium, which must be installed (Debian: apt-get install chromium; elsewhere $$CHROMIUM
# names it): the notebooks are run and a slider is moved there. What they compute stays in build/browser.
test-browser: $(VENV)/.installed-dev $(VENV)/.installed-browser
	IADD_BROWSER=1 IADD_RUNS=$(CURDIR)/build/browser/runs $(BIN)/python -m pytest tests/browser

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

# The API reference, of the docstrings: build/docs/index.html.
docs: $(VENV)/.installed-dev
	$(BIN)/python docs/render.py build/docs

# Looked at each time: what an interrupted installation or another tool left is mended.
$(VENV)/.%: FORCE
	@$(PYTHON) environment.py $@

# Executes the notebooks in place and keeps only the outputs that nbval compares; run it after changing one.
notebooks: $(VENV)/.installed-dev
	TQDM_DISABLE=1 IADD_RUNS=$(CURDIR)/runs $(BIN)/jupyter nbconvert --to notebook --inplace --execute \
	    --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/jupyter nbconvert --to notebook --inplace --TagRemovePreprocessor.enabled=True \
	    --TagRemovePreprocessor.remove_all_outputs_tags=nbval-ignore-output notebooks/*.ipynb

clean:
	rm -rf .venv* build dist *.egg-info
