# The agent alone: the SPDK target runs beside it, in a container of its own.
FROM python:3.13-slim-trixie AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
RUN python -m venv /opt/quarry \
    && /opt/quarry/bin/pip install --no-cache-dir --only-binary :all: --no-binary quarry-agent . \
    && /opt/quarry/bin/pip uninstall --yes pip setuptools \
    && /opt/quarry/bin/quarry version

FROM python:3.13-slim-trixie
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        btrfs-progs e2fsprogs ledmon libudev1 mount nvme-cli smartmontools util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/quarry /opt/quarry
ENV PATH=/opt/quarry/bin:$PATH
# Root unless told otherwise: a node's agent needs it for mounts, disks and NVMe. The controller runs as any user.
ENTRYPOINT ["quarry"]
CMD ["--help"]
