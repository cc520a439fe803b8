# One image for every stage. torch's Linux wheels carry CUDA's libraries, so a slim Python is base enough: the driver comes
# from the host's NVIDIA runtime, and without a GPU the same image runs on the CPU.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Its tag is in the argument, where hadolint does not look.
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS build
WORKDIR /build
COPY requirements.txt .
# CUDA's libraries move aside to become a layer of their own: it changes with torch alone, and is pulled beside the rest.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements.txt \
 && mkdir -p /opt/venv/lib/python3.11/site-packages/nvidia \
 && mv /opt/venv/lib/python3.11/site-packages/nvidia /opt/nvidia
# 1 bakes torchvision's ImageNet weights in, for clusters without the internet: --imagenet-weights /opt/imagenet/resnet18.pth
ARG IMAGENET_WEIGHTS=0
RUN mkdir /opt/imagenet \
 && if [ "${IMAGENET_WEIGHTS}" = 1 ]; then \
      ln -s /opt/nvidia /opt/venv/lib/python3.11/site-packages/nvidia \
      && /opt/venv/bin/python -c "import torch, torchvision; torch.save(torchvision.models.get_model_weights('resnet18').IMAGENET1K_V1.get_state_dict(check_hash=True), '/opt/imagenet/resnet18.pth')" \
      && rm /opt/venv/lib/python3.11/site-packages/nvidia; \
    fi
COPY app app
RUN python3 -m compileall -q app

# The same.
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
COPY --from=build /opt/nvidia /opt/venv/lib/python3.11/site-packages/nvidia
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/imagenet /opt/imagenet
COPY LICENSE /opt/byol-med/LICENSE
COPY --from=build /build/app /opt/byol-med/app
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="byol-med" \
      org.opencontainers.image.description="BYOL and BYOL+ pretraining on unlabelled medical images, and its downstream evaluation" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The root file system may be read-only: everything that is written lies below /scratch, which is to be a mount.
# GPUs are shown by whoever gives them, Kubernetes' device plugin or `docker run --gpus`; without them a pod sees none.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/opt/byol-med \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REVISION=${REVISION} \
    HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/.cache \
    XDG_CONFIG_HOME=/scratch/.config \
    TORCH_HOME=/scratch/.cache/torch \
    MPLCONFIGDIR=/scratch/.config/matplotlib \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN mkdir -m 1777 /scratch
USER 10001:10001
WORKDIR /scratch
ENTRYPOINT ["python", "-m", "app"]
CMD ["--help"]
