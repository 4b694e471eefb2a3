# Two commands matter: `make reports` and `make test`. Both make .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
TIER ?= # of settings.ini

.DEFAULT_GOAL := help
.PHONY: help setup reports test lab bench torture notebooks export readme clean distclean

help: ## show this list
	@echo "jepa: video JEPA on one ordinary computer"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("jepa needs Python 3.11 or newer; name one, for instance: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true # pip would take one core; a few packages carry files that are no Python
	@touch $@

setup: .venv/.done ## make .venv with the pinned versions

reports: .venv/.done ## make every report (TIER=quick, standard or paper) and say where the index is
	@$(BIN)/jepa reports run $(if $(strip $(TIER)),--tier $(strip $(TIER)))

test: .venv/.done ## run everything that CI runs: notebooks and tests side by side, each with one thread
	$(BIN)/python tests/checks.py
	@export OMP_NUM_THREADS=1; \
	$(BIN)/nbdev-test --do-print --n-workers 1 > .notebooks.log 2>&1 & notebooks=$$!; \
	$(BIN)/python -m pytest; tests=$$?; \
	wait $$notebooks; failed=$$?; \
	if [ $$failed -ne 0 ]; then cat .notebooks.log; else grep -c '^- Completed' .notebooks.log | sed 's/$$/ notebooks ran/'; fi; \
	exit $$((tests + failed))

lab: .venv/.done ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs/index.ipynb

bench: .venv/.done ## measure this machine: training step, decoding, memory
	$(BIN)/python -m tools.bench

torture: .venv/.done ## kills, damage, full disks, hostile files: equal results or a message (SHORT=1: three minutes)
	$(BIN)/python -m tools.torture $(if $(strip $(SHORT)),--short)

notebooks: .venv/.done ## run every notebook in nbs/ again and store its outputs
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.timeout=900 --ExecutePreprocessor.coalesce_streams=True nbs/*.ipynb
	$(MAKE) export

export: .venv/.done ## write jepa/*.py and README.md from the notebooks, and clean these
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-clean --fname reports
	$(BIN)/python -m tools.readme

readme: .venv/.done ## write README.md from nbs/index.ipynb, its tables brought up to date
	$(BIN)/python -m tools.course
	$(BIN)/python -m tools.readme

clean: ## remove caches of tests and builds
	rm -rf build dist .pytest_cache .hypothesis
	find jepa nbs tests reports -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean ## remove .venv too
	rm -rf .venv
