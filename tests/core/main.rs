//! The core, without sockets: recorded bytes of real peers, properties, limits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod introduce;
mod proxy_header;
mod sniff;
mod sniff_again;
mod sniff_foolscap;
mod sniff_http;
mod sniff_named;
mod sniff_policy;
mod sniff_storage;
mod sniff_tls;
mod transcripts;
mod wire;
mod wire_handshake;
mod wire_random;
