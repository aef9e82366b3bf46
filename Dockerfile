# An OCI image of kite: one program, one user, no shell.
#
#   docker build -t kite .
#   docker run --volume kite-state:/var/lib/kite --volume ./kite:/etc/kite:ro kite backend --config /etc/kite/backend.toml
#
# A frontend: --publish 80:80 --publish 443:443, and `frontend --config /etc/kite/frontend.toml`.
# Secrets: files in /etc/kite that belong to user 65532 and that nobody else can read.

FROM docker.io/library/rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential pkg-config
WORKDIR /kite
COPY Cargo.toml Cargo.lock clippy.toml README.md ./
COPY src src
COPY tor tor
COPY benches benches
COPY examples examples
RUN cargo build --release --locked --bin kite
# The state directory, with its owner: the image that follows has no shell to make it with.
RUN install --directory --owner=65532 --group=65532 --mode=0700 /made/var/lib/kite

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /kite/target/release/kite /usr/bin/kite
COPY --from=build /made/ /
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/kite/
USER 65532:65532
ENV STATE_DIRECTORY=/var/lib/kite
VOLUME /var/lib/kite
# It is well when each frontend has a tunnel. Through Tor the first can take minutes.
HEALTHCHECK --interval=1m --timeout=40s --start-period=5m CMD ["/usr/bin/kite", "status"]
ENTRYPOINT ["/usr/bin/kite"]
CMD ["--help"]
