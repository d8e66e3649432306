# An image with the package, its GPU stack and its jobs, for Kubernetes, Slurm (by Apptainer) or one machine.
#
#   docker build --tag mhimdist:0.1.0 .
#   docker run --rm --gpus all --shm-size 8g --volume "$PWD/data:/shared" mhimdist:0.1.0 jobs/train_c16.py --help
#   apptainer build mhimdist.sif docker-daemon://mhimdist:0.1.0
#
# CUDA's libraries come with torch's wheels; the machine only brings the driver. Pin the base by its digest
# (`docker buildx imagetools inspect python:3.11.13-slim-bookworm`) where a rebuild must be the very same.
FROM python:3.11.13-slim-bookworm

# What Triton needs to build its launchers at the first use of a kernel.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin mhimdist

# The dependencies alone, in the pinned versions: this layer stays while only the code changes.
WORKDIR /opt/mhimdist
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir mhimdist data_prep \
    && touch mhimdist/__init__.py data_prep/__init__.py \
    && pip install --no-cache-dir --constraint constraints.txt ".[slides]" \
    && pip uninstall --yes mhimdist

COPY mhimdist mhimdist
COPY data_prep data_prep
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps .

# Slurm and KubeRay start commands of their own; both need `ray` and `python`, which are on PATH.
ENV MHIMDIST_HOME=/shared/mhimdist \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
ENTRYPOINT ["python"]
CMD ["jobs/tune_c16.py", "--help"]
