# The image of every process of a cluster: the API, the workers and the migration. deploy/README.md says how to build and run it.
#
#   docker build --tag mini-assistant:1 .
#
# Arguments: SANDBOX=none leaves out the Python that code_interpreter runs (it is the larger part of the image);
# BUILTIN_MODEL=yes puts in the small model that answers without an endpoint.

FROM python:3.13-slim-trixie AS build
ARG SANDBOX=process
ARG BUILTIN_MODEL=no
# Where packages come from, when not from where pip looks by itself.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# Packages before sources, so that a change of the code leaves these layers as they are. pip installs into the environment from outside of
# it: neither pip nor the build backend is in what the last stage takes over.
COPY requirements/build.lock requirements/runtime.lock requirements/scale-out.lock requirements/builtin-embedder.lock requirements/builtin-model.lock requirements/
RUN python -m pip install --require-hashes --requirement requirements/build.lock \
    && python -m venv --without-pip /opt/mini-assistant \
    && python -m pip --python /opt/mini-assistant install --require-hashes \
        --requirement requirements/runtime.lock --requirement requirements/scale-out.lock \
    && python -m pip --python /opt/mini-assistant install --require-hashes --no-deps --only-binary :all: \
        --requirement requirements/builtin-embedder.lock
RUN if [ "$BUILTIN_MODEL" = yes ]; then \
        python -m pip --python /opt/mini-assistant install --require-hashes --no-deps --only-binary :all: \
            --requirement requirements/builtin-model.lock; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-build-isolation --no-deps --no-index --wheel-dir wheels . \
    && python -m pip --python /opt/mini-assistant install --no-deps --no-index wheels/*.whl
RUN if [ "$SANDBOX" = process ]; then /opt/mini-assistant/bin/mini-assistant sandbox prepare process; fi

FROM python:3.13-slim-trixie
# The numbers are those of the manifests. The program belongs to root: the server cannot change itself.
RUN groupadd --system --gid 10001 mini-assistant \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin mini-assistant \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data
COPY --from=build /opt/mini-assistant /opt/mini-assistant
# Copies that are worked on, and in the embedded shape everything. Of a cluster nothing in it has to outlive the container.
ENV PATH=/opt/mini-assistant/bin:$PATH MINI_ASSISTANT_DATA_DIR=/data
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["mini-assistant"]
# Listening for others needs a key (`mini-assistant keys create`, or MINI_ASSISTANT_API_KEYS); without one the server says so and ends.
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
