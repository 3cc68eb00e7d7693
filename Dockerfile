# The versions are those that Tollgate is tested with. For an image that is the same to the byte, give both bases by digest:
# --build-arg RUNTIME=gcr.io/distroless/cc-debian12@sha256:...
ARG BUILDER=rust:1.95.0-slim-bookworm
ARG RUNTIME=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILDER} AS build
WORKDIR /src
# The dependencies first, around programs that do nothing: this layer stays until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' > build.rs \
    && cp build.rs src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin tollgate
COPY build.rs ./
COPY build build
COPY proto proto
COPY lua lua
COPY catalogs catalogs
COPY src src
# Copied files keep their times, and Cargo goes by those: what was built above must count as older.
RUN touch build.rs src/main.rs src/lib.rs && cargo build --release --locked --bin tollgate

# The names and lines of the code are larger than the program itself, and only a debugger wants them. The program names the file that
# they are in, and both have the same build id.
RUN objcopy --only-keep-debug target/release/tollgate tollgate.debug \
    && objcopy --strip-all --add-gnu-debuglink=tollgate.debug target/release/tollgate tollgate

# Only that file: docker build --target debug --output type=local,dest=. .
FROM scratch AS debug
COPY --from=build /src/tollgate.debug /

# The C library and nothing else: no shell, no package manager. It has no redis-server either: set TOLLGATE_REDIS_URL.
FROM ${RUNTIME}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tollgate" \
      org.opencontainers.image.description="A gRPC service that meters end-users of AI products, and refuses the call that would break a plan" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /src/tollgate /usr/local/bin/tollgate
# Everybody who reaches the container may call this address, so it does not start before somebody says who is let in: by
# TOLLGATE_API_KEYS=true, client certificates, or TOLLGATE_ALLOW_ANONYMOUS=true where the network keeps others out.
ENV TOLLGATE_LISTEN=0.0.0.0:50051
EXPOSE 50051
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
# Where TLS is on, this has to be told: tollgate health https://127.0.0.1:50051 --tls-ca FILE --tls-server-name NAME
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/tollgate", "health"]
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
