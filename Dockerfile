# AFOV as an image, for the CPU and for CUDA: torch's wheels bring CUDA's libraries, and the host's driver does the rest.
#   docker build -t afov .            docker run --gpus all -v /data:/data -v "$PWD:/work" afov doctor mine.toml
# A smaller one without CUDA: --build-arg PIP_OPTIONS="--index-url URL", URL being PyTorch's index of wheels for the CPU.
# MinkowskiEngine is not in it: students compute with the engine in plain PyTorch ([network] engine = "torch").
# Not built where this was written, for want of a container engine; tests/test_install.py holds its packages to install/setup.py.
FROM debian:12-slim
ARG PIP_OPTIONS=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
       python3.11 python3.11-venv libopenblas0 libusb-1.0-0 libegl1 libgl1 libx11-6 libidn2-0 libudev1 \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /opt/afov/
COPY install /opt/afov/install
COPY afov /opt/afov/afov
COPY manifests /opt/afov/manifests
COPY superpixels /opt/afov/superpixels
COPY pipeline /opt/afov/pipeline
COPY trainer /opt/afov/trainer
COPY bench/city /opt/afov/bench/city
RUN python3.11 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir ${PIP_OPTIONS} -c /opt/afov/install/constraints.txt /opt/afov
ENV PATH=/opt/venv/bin:$PATH OMP_NUM_THREADS=1
WORKDIR /work
ENTRYPOINT ["afov"]
CMD ["--help"]
