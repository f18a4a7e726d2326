# Wukong on a CPU: the commands and the studio.
#
#   docker build -t wukong .
#   docker run --rm -v "$PWD/runs:/work/runs" wukong run kitchen
#   docker run --rm -v "$PWD/runs:/work/runs" -p 127.0.0.1:8000:8000 wukong studio --run runs/kitchen --host 0.0.0.0
#
# TORCH_ARGS goes to pip when it installs torch, as in the Makefile: the default takes PyTorch's CPU-only build.
FROM python:3.11-slim-bookworm

# The compiler builds our decoding kernels on first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
# TORCH_ARGS holds several words.
# hadolint ignore=SC2086
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_ARGS} torch
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt '.[studio,lexicon]'

RUN useradd --uid 1000 --create-home wukong && mkdir /work && chown wukong /work
USER 1000
WORKDIR /work
ENTRYPOINT ["wukong"]
CMD ["--help"]
