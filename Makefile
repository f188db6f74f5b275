PYTHON ?= python3
VENV ?= .venv
INSTALLED = $(VENV)/installed
# One core is left to the data worker: threads that wait for each other on a full machine are many times slower.
THREADS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > 1 ? cores - 1 : 1)))

.PHONY: demo test lint

demo: $(INSTALLED)
	$(VENV)/bin/maws-hf demo-data emoji --output_dir data/emoji
	$(VENV)/bin/accelerate launch --config_file examples/accelerate/single_process.yaml --cpu \
		--num_cpu_threads_per_process $(THREADS) examples/run_mae.py \
		--config examples/recipes/mae_laptop.yaml --dataset_name data/emoji --eval_split unseen --output_dir runs/demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)
