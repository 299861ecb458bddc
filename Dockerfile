# syntax=docker/dockerfile:1
# An IPFS node that keeps its blocks on Walrus. All logic is in scripts/ and docker/entrypoint.sh.
#
#   docker build -t walrusds --build-arg IPFS_VERSION=v0.43.0 .
#   docker run -v ipfs:/data/ipfs -e WALRUSDS_PUBLISHER_URL=... -e WALRUSDS_AGGREGATOR_URL=... walrusds

FROM rust:1-bookworm AS rust

FROM golang:1.26-bookworm AS build
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
WORKDIR /src
COPY . .
# Kubo is built with the Go release that its version asks for; another one is fetched when needed.
ARG IPFS_VERSION=v0.43.0
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    cargo build --release --locked --lib \
    && OUTPUT=/out/ipfs scripts/kubo-build.sh "$IPFS_VERSION" \
    && OUTPUT=/out/walrusds-configure scripts/configure-build.sh

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fuse gosu tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ipfs /out/walrusds-configure /usr/local/bin/
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/start_ipfs
ENV IPFS_PATH=/data/ipfs
RUN useradd --uid 1000 --gid users --home-dir "$IPFS_PATH" --shell /bin/sh ipfs \
    && mkdir -p "$IPFS_PATH" /ipfs /ipns /mfs /container-init.d \
    && chown ipfs:users "$IPFS_PATH" /ipfs /ipns /mfs /container-init.d
VOLUME /data/ipfs
# swarm; RPC API (keep it private); gateway; swarm over WebSockets
EXPOSE 4001 4001/udp 5001 8080 8081
HEALTHCHECK --interval=30s --timeout=3s --start-period=30s --retries=3 \
    CMD ipfs --api=/ip4/127.0.0.1/tcp/5001 dag stat /ipfs/QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn >/dev/null || exit 1
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/start_ipfs"]
CMD ["daemon", "--migrate=true", "--agent-version-suffix=walrusds"]
