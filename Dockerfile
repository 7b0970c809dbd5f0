# docker build -t hotstart .                                   for CPUs
# docker build -t hotstart:cuda --build-arg BUILD=cu130 .      for NVIDIA GPUs; the host brings the driver
#
# docker run -p 8000:8000 -v ~/.cache/huggingface:/models -e HOTSTART_API_KEY=... hotstart serve Qwen/Qwen3.5-0.8B
# docker run --gpus all -p 8000:8000 -v ...                                       hotstart:cuda serve Qwen/Qwen3.5-4B
#
# The port is open to others, so `serve` wants a key, or to be told that it needs none (--insecure-no-auth).

FROM python:3.12-slim

ARG BUILD=cpu
ARG TORCH=2.13.0

# Triton compiles a launcher with the C compiler when a GPU is first used.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN pip install --no-cache-dir "torch==${TORCH}" --index-url "https://download.pytorch.org/whl/${BUILD}"

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir /source && rm -rf /source

RUN useradd --create-home hotstart && mkdir /models /cache && chown hotstart /models /cache
USER hotstart
ENV HOTSTART_HOST=0.0.0.0 \
    HOTSTART_CACHE=/cache/hotstart \
    TRITON_CACHE_DIR=/cache/triton \
    HF_HOME=/models

EXPOSE 8000
VOLUME ["/models", "/cache"]
HEALTHCHECK --start-period=10s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["hotstart"]
CMD ["serve", "--help"]
