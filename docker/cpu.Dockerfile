# Trying, testing and small trainings without a GPU: docker build --file docker/cpu.Dockerfile --tag mmvit:cpu .
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Debian removes old versions of a package, so that a pinned compiler would break the build some day.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /workspace/mmvit
COPY . .
# The cache keeps mmcv's wheel from one build to the next. The optional secrets carry pip's settings and a certificate for
# both installers into the build, and nothing of them into the image.
RUN --mount=type=cache,target=/var/cache/mmvit \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/run/buildcfg/ca.crt,required=false \
    if [ -e /run/buildcfg/ca.crt ]; then export SSL_CERT_FILE=/run/buildcfg/ca.crt; fi \
    && XDG_CACHE_HOME=/var/cache/mmvit UV_NO_CACHE=1 python3 bootstrap.py /opt/venv

FROM ${BASE_IMAGE}
ARG UID=1000
RUN useradd --create-home --no-log-init --non-unique --uid ${UID} mmvit \
    && install --directory --owner mmvit /workspace/mmvit /workspace/mmvit/data /workspace/mmvit/work_dirs
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} PYTHONWARNINGS=ignore
WORKDIR /workspace/mmvit
COPY --chown=mmvit . .
USER ${UID}
RUN python -c 'import mmvit, mmcv._ext'
CMD ["mim", "--help"]
