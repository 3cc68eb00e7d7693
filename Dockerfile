# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY lua lua
COPY catalogs catalogs
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin tollgate && cp target/release/tollgate /tollgate

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /tollgate /usr/local/bin/tollgate
ENV TOLLGATE_LISTEN=0.0.0.0:50051
EXPOSE 50051
USER nonroot
# Probes: grpc.health.v1 on the same port. The image has no Redis of its own: set TOLLGATE_REDIS_URL.
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
