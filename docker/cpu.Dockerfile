# A draft that has not been built yet.
# Training without a GPU: docker build --file docker/cpu.Dockerfile --tag mmvit:cpu .
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Any version of the compiler does; Debian removes old ones, so that a pin would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /workspace/mmvit
COPY . .
# The optional secrets carry a package index's settings and certificate into the build, and into nothing else.
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/run/buildcfg/ca.crt,required=false \
    if [ -e /run/buildcfg/ca.crt ]; then export SSL_CERT_FILE=/run/buildcfg/ca.crt; fi \
    && UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 python3 bootstrap.py /opt/venv \
    && rm -rf /root/.cache

FROM ${BASE_IMAGE}
RUN useradd --create-home --uid 1000 mmvit && install --directory --owner mmvit /workspace/mmvit
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} PYTHONWARNINGS=ignore
USER mmvit
WORKDIR /workspace/mmvit
COPY --chown=mmvit . .
RUN python -c 'import mmcv._ext, mmvit'
CMD ["mim", "--help"]
