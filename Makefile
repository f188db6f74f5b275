PYTHON ?= python3
VENV ?= .venv
INSTALLED = $(VENV)/installed
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# One core is left to the data worker: threads that wait for each other on a full machine are many times slower.
THREADS ?= $(shell echo $$(($(CORES) > 1 ? $(CORES) - 1 : 1)))
# Processes that run the tests, of one thread each for the same reason; each needs about 2 GB of memory.
JOBS ?= 2

.PHONY: demo test lint

ACCELERATE = $(VENV)/bin/accelerate launch --config_file examples/accelerate/single_process.yaml --cpu
LAUNCH = $(ACCELERATE) --num_cpu_threads_per_process $(THREADS)
LANGUAGES = en de es fr ja zh
# No data worker: its features are computed, and nothing is left to decode.
LAUNCH_LIT = $(ACCELERATE) --num_cpu_threads_per_process $(CORES) examples/run_lit.py \
	--config examples/recipes/lit_laptop.yaml \
	--vision_model_name_or_path runs/demo/mae-wsp --text_model_name_or_path runs/demo/text-tower \
	--dataset_name data/emoji --retrieval_splits test unseen --feature_cache runs/demo/features

demo: $(INSTALLED)
	$(VENV)/bin/maws-hf demo-data emoji --output_dir data/emoji
	$(VENV)/bin/python scripts/build_wsp_labels.py --dataset_name data/emoji --dataset_split train unseen \
		--tags_column_name tags --output_dir data/emoji-synsets
	$(LAUNCH) examples/run_mae.py --config examples/recipes/mae_laptop.yaml \
		--dataset_name data/emoji --eval_split unseen --output_dir runs/demo/mae
	$(LAUNCH) examples/run_wsp.py --config examples/recipes/wsp_laptop.yaml \
		--dataset_name data/emoji-synsets --eval_split unseen --output_dir runs/demo/wsp
	$(LAUNCH) examples/run_wsp.py --config examples/recipes/wsp_laptop.yaml --model_name_or_path runs/demo/mae \
		--dataset_name data/emoji-synsets --eval_split unseen --output_dir runs/demo/mae-wsp
	$(VENV)/bin/python examples/run_linear_probe.py --dataset_name data/emoji --label_column_name group \
		--eval_split unseen --model_name_or_path runs/demo/mae runs/demo/wsp runs/demo/mae-wsp \
		--output_dir runs/demo/evaluation
	$(VENV)/bin/maws-hf text-tower --output_dir runs/demo/text-tower --dataset_name data/emoji \
		--dataset_split train test unseen --languages $(LANGUAGES)
	$(LAUNCH_LIT) --output_dir runs/demo/lit
	$(LAUNCH_LIT) --output_dir runs/demo/lit-untrained --max_steps 1 --warmup_steps 0 --learning_rate 0
	$(VENV)/bin/python examples/run_zero_shot.py --model_name_or_path runs/demo/lit runs/demo/lit-untrained \
		--dataset_name data/emoji --eval_split test unseen --label_column_name concept --prompts captions \
		--languages $(LANGUAGES) --bf16 --output_dir runs/demo/zero-shot
	$(VENV)/bin/maws-hf demo-report --runs_dir runs/demo --data_dir data/emoji --labels_dir data/emoji-synsets \
		--output outputs/demo/report.html

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or later: type make PYTHON=python3.12, say"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)
