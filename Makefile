# make help lists the targets. Every target that runs something brings .venv up to date first.
# PYTHON  the interpreter that .venv is made from
# RECIPE  what to build or train: a name in manifests/recipes, or the path of a .toml file
# ARGS    words for the shell, passed on as they stand: ARGS="--set group.min_points=5 --set 'data.root=/a b'". A shell
#         reads them, so put no text into it that you have not written; all other variables are never run.
# OUT     where to write an export, or labels
# OF, AS  which labels to write as files, and in which layouts
# TABLES  what to share: stages; pack and text are all that training reads
# ARCHIVE the file that tables are shared as
# WORDS   what to ask the map for
# A, B    two runs to compare: RECIPE/TASK, or folders
# STAGE   the table or training that make profile looks at
# SIZE    of the city in make demo: demo, or tiny for a quick one
PYTHON ?= python3.11
RECIPE ?=
ARGS ?=
TABLES ?= pack text
ARCHIVE ?=
WORDS ?=
SIZE ?= demo
A ?=
B ?=
STAGE ?=
NETWORK_ARGS ?=
PLANNING_ARGS ?=
# What a variable holds is text: make expands nothing in it ($(value)), and recipes get it from the environment, where a
# shell expands nothing in it either.
override PYTHON := $(value PYTHON)
override RECIPE := $(value RECIPE)
override ARGS := $(value ARGS)
override NETWORK_ARGS := $(value NETWORK_ARGS)
override PLANNING_ARGS := $(value PLANNING_ARGS)
override TABLES := $(value TABLES)
override ARCHIVE := $(value ARCHIVE)
override WORDS := $(value WORDS)
override SIZE := $(value SIZE)
OF ?=
AS ?=
override OF := $(value OF)
override AS := $(value AS)
OUT_ASKED := $(filter-out undefined,$(origin OUT))
override STAGE := $(value STAGE)
override A := $(value A)
override B := $(value B)
ifeq ($(origin OUT),undefined)
OUT := export/$(RECIPE)
endif
override OUT := $(value OUT)
export STAGE PYTHON RECIPE TABLES ARCHIVE WORDS SIZE OUT OF AS A B
PY := .venv/bin/python
# What a message advises is then a make command.
export AFOV_ADVICE := make
AFOV := $(PY) -m afov

STAGES := index points project text encode segment score group motion belief vote correct mend pairs target label pack
QUESTIONS := show doctor plan status verify gc why
VIEWS := report view pictures
TRAINER := pretrain distill probe finetune supervised predict refine submit evaluate scores

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: archive help setup test coverage lint check bench profile ladder docs site recipes runs diff clean recipe city demo export autolabel calibrate labels review share receive query $(STAGES) $(QUESTIONS) $(VIEWS) $(TRAINER)

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { print "\n" substr($$0, 5) } /^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Working on the code
setup: ## .venv with the proven packages; PYTHON=... names another Python 3.11
	@command -v "$$PYTHON" >/dev/null || { echo "setup: $$PYTHON was not found. Install Python 3.11, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$$PYTHON" install/setup.py $(if $(filter setup,$(MAKECMDGOALS)),--thorough)

test: setup ## all tests, on two cores; ARGS="-k name" picks some
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

coverage: setup ## the share of lines that tests run, file by file; no gate, and slower than make test
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --cov --cov-report=term:skip-covered $(ARGS)

lint: setup ## format, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

check: lint test ## lint, then test

profile: recipe setup ## a flame graph of STAGE, a table or a training, in profile/: make profile STAGE=points RECIPE=city ARGS=--again
	@test -n "$$STAGE" || { echo "profile: name what to look at: make profile STAGE=points RECIPE=$$RECIPE" >&2; exit 2; }
	@mkdir -p profile
	@$(dir $(PY))py-spy record --subprocesses --function --output "profile/$$STAGE.svg" -- $(if $(filter $(STAGE),$(TRAINER)),$(AFOV) "$$STAGE" "$$RECIPE",$(AFOV) run "$$RECIPE" "$$STAGE" --set run.pool=inline) $(ARGS)
	@echo "open profile/$$STAGE.svg in a browser: the wider a box, the more of the time; click to look into it"

bench: setup ## time and bytes against the usual way, side by side
	@PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) bench/run.py $(ARGS)
	@PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) bench/network.py $(NETWORK_ARGS)
	@OMP_NUM_THREADS=1 $(PY) -m bench.voting
	@OMP_NUM_THREADS=1 $(PY) -m bench.planning $(PLANNING_ARGS)
	@OMP_NUM_THREADS=1 $(PY) -m bench.feed
	@OMP_NUM_THREADS=1 $(PY) -m bench.cluster
	@OMP_NUM_THREADS=1 $(PY) -m bench.beside

ladder: export OMP_NUM_THREADS = 1
ladder: setup ## what each part of the method adds, on the synthetic city; goes on where it stopped
	@$(PY) -m bench.city data/city_bench --size bench
	@PYTHONPATH=. $(PY) -m bench.ladder $(ARGS)

docs: setup ## write docs/data.md, settings.md and files.md anew from the code
	@$(AFOV) docs

site: setup ## README's pages as one site with search, in site/; a dead link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet && echo "wrote site/index.html; its search needs a server: python3 -m http.server -d site"

clean: ## remove caches; .venv, tables and checkpoints stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

##@ Without any data of your own
demo: setup ## the whole method on a synthetic city, to a table of scores and a report; SIZE=tiny is quicker
	@$(AFOV) demo --size "$$SIZE" $(ARGS)

city: setup ## a synthetic city in nuScenes format, in data/city; ARGS="--size tiny --seed 1"
	@$(AFOV) city data/city $(ARGS)

##@ Building tables, each with what it needs: make pack RECIPE=nuscenes_mini
index: ## list the frames and check every file
points: ## the sweeps as the trainer reads them
project: ## which point is seen at which pixel
text: ## a vector for each prompt
encode: ## the teacher's half that needs no vocabulary
segment: ## open-vocabulary masks
score: ## how sure the teacher is of each pixel that a point is seen in, where the recipe asks for it
group: ## masks to superpoints, and a pseudo-label for each point
motion: ## what moves, by what other sweeps see of its places
belief: ## all that a point may be after the vote, where [vote] belief asks for it
vote: ## pseudo-labels made consistent over time
correct: ## pseudo-labels after flat interaction (AFI)
pairs: ## what pretraining needs
mend: ## labels that people corrected, where the recipe names a folder of them
target: ## what distillation needs
label: ## ground truth, where there is one
pack: ## points, pairs and target: all that training reads
$(STAGES): recipe setup
	@$(AFOV) run "$$RECIPE" $@ $(ARGS)

export: recipe setup ## segments and point labels as the official scripts write them, into OUT
	@$(AFOV) export "$$RECIPE" "$$OUT" $(ARGS)

autolabel: recipe setup ## the whole job: tables, training, predictions, refinement, label files, report; goes on where it stopped
	@$(AFOV) autolabel "$$RECIPE" $(ARGS)

calibrate: recipe setup ## confidences that say how often labels are right, as [calibrate] asks; OF as for labels
	@$(AFOV) calibrate "$$RECIPE" $(if $(OF),--of "$$OF") $(ARGS)

labels: recipe setup ## labels as files, in labels/RECIPE or OUT; OF=refine|predict|vote|correct|target|group AS=npy,kitti,lidarseg,pcd,ply,parquet
	@$(AFOV) labels "$$RECIPE" $${OF:+--of "$$OF"} $${AS:+--as "$$AS"} $(if $(OUT_ASKED),--out "$$OUT") $(ARGS)

review: recipe setup ## frames most worth a person's time, as KITTI files to correct, in review/RECIPE; [data] corrections takes them back
	@$(AFOV) review "$$RECIPE" $(if $(OUT_ASKED),--out "$$OUT") $(ARGS)

##@ Handing tables on
share: recipe archive setup ## TABLES with their manifests and a licence note as one file, ARCHIVE=city.tar
	@set -f; $(AFOV) share "$$RECIPE" "$$ARCHIVE" $$TABLES $(ARGS)

receive: archive setup ## check such a file and take its tables in; ARGS="--into STORE" where it is not ./store
	@$(AFOV) receive "$$ARCHIVE" $(ARGS)

##@ Asking about tables
show: ## the recipe as it takes effect, and where each value comes from
doctor: ## files, calibration, disk, memory, GPU, weights: what would stop a run, in seconds
plan: ## what would run, why, and how many GB
status: ## how far the tables are, from the store alone
verify: ## read every table again and compare checksums
gc: ## tables that nothing names any more
why: ## what changed since the tables were built
$(QUESTIONS): recipe setup
	@$(AFOV) $@ "$$RECIPE" $(ARGS)

recipes: setup ## the built-in recipes
	@$(AFOV) recipes

##@ Looking at it
report: ## one offline page: frames, scores, curves, identities
view: ## frames in Rerun, an extra; ARGS="--out frames.rrd" writes a file
pictures: ## a picture of each frame
$(VIEWS): recipe setup
	@$(AFOV) $@ "$$RECIPE" $(ARGS)

query: recipe setup ## frames and points that are like WORDS="fire hydrant"; report and view show them
	@test -n "$$WORDS" || { echo 'make: this target needs words, for example: make query RECIPE=city WORDS="fire hydrant"' >&2; exit 2; }
	@$(AFOV) query $(ARGS) -- "$$RECIPE" "$$WORDS"

##@ Training: make pretrain distill evaluate RECIPE=nuscenes_mini
pretrain: ## text-driven pretraining on superpoints
distill: ## distillation of the pseudo-labels
probe: ## true labels, last layer only; reads table label
finetune: ## true labels, 1 % of them; reads table label
supervised: ## all true labels from scratch, an upper bound; reads table label
predict: ## labels for every point, as a table
refine: ## labels made better at the end, by the sweeps before and after and flat interaction, as a table
submit: ## predictions as files for the server of nuScenes or SemanticKITTI
evaluate: ## IoU per class, where there is ground truth
scores: ## all scores of a recipe in one table
runs: setup ## all runs: state, loss, scores
	@$(AFOV) runs $(ARGS)

diff: setup ## what differs between two runs: make diff A=city/distill B=city_scratch/distill
	@test -n "$$A" -a -n "$$B" || { echo "make: this target needs two runs, for example: make diff A=city/distill B=city_scratch/distill" >&2; exit 2; }
	@$(AFOV) diff "$$A" "$$B" $(ARGS)

# One thread: MinkowskiEngine's results are then the same in every run, and it is no slower.
$(TRAINER): export OMP_NUM_THREADS = 1
$(TRAINER): recipe setup
	@$(AFOV) $@ "$$RECIPE" $(ARGS)

archive:
	@test -n "$$ARCHIVE" || { echo "make: this target needs a file, for example: ARCHIVE=city.tar" >&2; exit 2; }

recipe:
	@test -n "$$RECIPE" || { echo "make: this target needs a recipe, for example: make $(firstword $(MAKECMDGOALS)) RECIPE=nuscenes_mini" >&2; exit 2; }
