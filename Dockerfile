# syntax=docker/dockerfile:1
# The gateway as an unprivileged user. Mount suffice.toml at /etc/suffice/suffice.toml and a volume at /data:
#   docker run -p 8484:8484 -v ./suffice.toml:/etc/suffice/suffice.toml:ro -v suffice:/data \
#     -e OPENAI_API_KEY -e SUFFICE_API_KEYS=... suffice
FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements/base.txt requirements/base.txt
RUN python -m venv /opt/suffice \
 && /opt/suffice/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements/base.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/suffice/bin/pip install --no-cache-dir --no-deps . \
 && /opt/suffice/bin/pip uninstall -y -q pip

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home suffice \
 && install -d -o suffice -g suffice /data /etc/suffice
COPY --from=build /opt/suffice /opt/suffice
ENV PATH=/opt/suffice/bin:$PATH PYTHONUNBUFFERED=1
USER suffice
WORKDIR /data
VOLUME /data
EXPOSE 8484
HEALTHCHECK --interval=15s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8484/healthz', timeout=2)"]
ENTRYPOINT ["suffice"]
# A host other than loopback needs client keys: SUFFICE_API_KEYS. SIGTERM drains running requests.
STOPSIGNAL SIGTERM
CMD ["serve", "--config", "/etc/suffice/suffice.toml", "--host", "0.0.0.0", "--port", "8484"]
