# make install | demo | picture | docs | notebooks | test | test-slow | test-notebooks | test-backends | lint | bench | clean-demo
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARCHIVE := data/demo/rsna-intracranial-hemorrhage-detection.zip

.PHONY: install demo picture docs notebooks test test-slow test-notebooks test-backends lint bench clean-demo

install: $(VENV)/installed

# constraints.txt holds the versions that the tests ran with.
$(VENV)/installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: install
	$(BIN)/python scripts/make_demo_data.py $(DEMO_ARCHIVE)
	$(BIN)/python scripts/preprocess.py configs/demo.yaml --max-failures 1  # one slice is cut, as in the competition
	$(BIN)/python scripts/make_folds.py configs/demo.yaml
	$(BIN)/python scripts/train_kfold.py configs/demo.yaml
	$(BIN)/python scripts/predict.py runs/demo
	$(BIN)/python scripts/train_sequence.py runs/demo
	$(BIN)/python scripts/make_submission.py runs/demo runs/demo-sequence --name demo  # the better of the two
	$(BIN)/python scripts/report.py runs/demo runs/demo-sequence
	$(BIN)/python scripts/make_demo_export.py $(DEMO_ARCHIVE) data/demo/export --series 4
	$(BIN)/python scripts/predict_scans.py runs/demo-sequence data/demo/export --out predictions/demo

# On what `make demo` left, from top to bottom; the outputs are thrown away.
notebooks: $(VENV)/notebooks
	$(BIN)/jupyter-execute --timeout=300 notebooks/0*.ipynb

$(VENV)/notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[notebooks]"
	touch $@

# README.md's picture, of a slice on which Grad-CAM is easily read.
picture: demo
	$(BIN)/python docs/slice_life.py runs/demo --slice ID_3e50f41a3 --label intraparenchymal

# docs/configuration.md, of the keys in src/ich/config.
docs: install
	$(BIN)/python docs/configuration.py

# Two processes, each file's tests in one of them: half the time on two cores.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not backends and not notebooks"

test-slow: install
	$(BIN)/python -m pytest -m slow

test-notebooks: $(VENV)/notebooks
	$(BIN)/python -m pytest -m notebooks

# In an environment of its own: JAX and PyTorch are as large as all else, and keras-hub wants its own TensorFlow. With PyTorch's CPU wheels it is a gigabyte
# instead of five: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test-backends
test-backends: $(VENV)-backends/installed
	$(VENV)-backends/bin/python -m pytest -m "backends or hub"

$(VENV)-backends/installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-backends
	$(VENV)-backends/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test,backends,hub]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/bench_demo.py
	$(BIN)/python benchmarks/bench_blend.py
	$(BIN)/python benchmarks/bench_labels.py
	$(BIN)/python benchmarks/bench_convert.py  # this and the next on real slices, of the folder that RSNA_SAMPLE names
	$(BIN)/python benchmarks/bench_generator.py
	$(BIN)/python benchmarks/bench_predict.py
	$(BIN)/python benchmarks/bench_scale.py

clean-demo:
	rm -rf data/demo images/demo runs/demo runs/demo-sequence submissions/demo.csv submissions/demo.json predictions/demo
