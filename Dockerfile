# Wukong on a CPU: the command line, the server and the studio.
#
#   docker build -t wukong .
#   docker run --rm -v "$PWD:/data" wukong run kitchen
#   docker run --rm -it -v "$PWD:/data" wukong chat runs/kitchen/policy
#   docker run --rm -p 127.0.0.1:8000:8000 -e WUKONG_ADMIN_SECRET -v "$PWD:/data" wukong \
#       studio --host 0.0.0.0 --port 8000 --no-open-browser --run runs/kitchen
#
# The directory that is mounted must be writable by user 1000, or by the one that --user names.
FROM python:3.11-slim-bookworm

# The C++ compiler builds the kernels for this processor when they are first used. The distribution keeps one version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt '.[studio,lexicon,rl]'

ENV XDG_CACHE_HOME=/var/cache/wukong
RUN useradd --create-home --uid 1000 wukong && install -d -m 1777 "$XDG_CACHE_HOME" /data
USER 1000
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["wukong"]
CMD ["--help"]
