# ponder serve, on the CPU.
#
#   docker build -t ponder .
#   docker run --rm -p 127.0.0.1:8000:8000 -v ponder-models:/models -e PONDER_API_KEY=... ponder
#
# The model (PONDER_MODEL, default smollm2-135m) is fetched into the volume when it is first served. Kernels are compiled there, too,
# the first time, for the CPU that is found. Nobody outside the machine reaches the port as published above; publish it wider only with
# the key that PONDER_API_KEY is. Without one the container does not start. What follows the image's name goes to `ponder serve`.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 ponder \
    && install -d -o ponder -g ponder /models

WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY src ./src
# a package index that has PyTorch's CPU build, a tenth of the default one's size, may be named
ARG TORCH_INDEX
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c requirements.lock ".[serve]"

USER ponder
ENV PONDER_CACHE=/models \
    PONDER_MODEL=smollm2-135m \
    PYTHONUNBUFFERED=1
VOLUME /models
EXPOSE 8000

HEALTHCHECK --interval=30s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

STOPSIGNAL SIGTERM
COPY --chmod=755 scripts/serve_in_container /usr/local/bin/
ENTRYPOINT ["serve_in_container"]
