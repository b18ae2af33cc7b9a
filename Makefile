# make demo: train, test and draw a detector on the embedded data (BACKBONE=mpvit_t, regionvit_t or pyramid_tnt_t).
# make test: everything CI runs.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/ready
BACKBONE := mpvit_t
CONFIG := maskrcnn_$(BACKBONE)_digits
WORK := work_dirs/$(CONFIG)
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
DOCKER ?= docker
PLOT := $(BIN)/mim run mmdet analyze_logs plot_curve

# What these packages say of one another on every start; it helps nobody here.
export PYTHONWARNINGS := ignore

.PHONY: demo test test-fast lint image tables pins
.DELETE_ON_ERROR:

demo: $(READY) data/digits/annotations/instances_val.json
	rm -rf $(WORK)
	$(BIN)/mim train mmdet configs/$(CONFIG).py --work-dir $(WORK)
	$(BIN)/mim test mmdet configs/$(CONFIG).py --checkpoint "$$(cat $(WORK)/last_checkpoint)" --work-dir $(WORK)/test
	$(PLOT) $(WORK)/2*/vis_data/scalars.json --style whitegrid --out $(WORK)/loss.png --title 'training' \
	    --keys loss loss_cls loss_bbox loss_mask --legend 'all losses' 'class' 'box' 'mask'
	$(PLOT) $(WORK)/2*/vis_data/scalars.json --style whitegrid --out $(WORK)/ap.png --title 'held-out images' \
	    --keys bbox_mAP_50 segm_mAP_50 --legend 'box AP50' 'mask AP50'
	$(BIN)/python tools/draw_predictions.py configs/$(CONFIG).py "$$(cat $(WORK)/last_checkpoint)" $(WORK)/predictions.png
	@printf '\nLook at:\n'
	@printf '%s\n' $(WORK)/predictions.png $(WORK)/loss.png $(WORK)/ap.png

test test-fast: export OMP_NUM_THREADS := 1
test: lint
	$(PYTEST)

test-fast: lint
	$(PYTEST) -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tests/readme_tables.py --check
	$(BIN)/hadolint docker/Dockerfile docker/cpu.Dockerfile

# Build the image without CUDA, and show inside it that it works.
image:
	$(DOCKER) build --file docker/cpu.Dockerfile --tag mmvit:cpu .
	$(DOCKER) run --rm mmvit:cpu bash docker/check.sh

# Write README's tables anew from the metafiles.
tables: $(READY)
	$(BIN)/python tests/readme_tables.py

# Resolve the pins anew (pyproject.toml says which are held, and why).
pins: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra det --extra seg --extra dev --group pinned --upgrade \
	    --python-version 3.11 --python-platform linux --no-emit-index-url --no-header --quiet -o requirements.txt

data/digits/annotations/instances_val.json: tools/make_digits.py | $(READY)
	$(BIN)/python tools/make_digits.py data/digits

$(READY): requirements.txt pyproject.toml bootstrap.py
	@command -v $(PYTHON) >/dev/null || { echo 'set-up stopped: no $(PYTHON) found: install Python 3.11, or run make PYTHON=/path/to/python3.11'; exit 1; }
	@$(PYTHON) bootstrap.py
	@touch $@
