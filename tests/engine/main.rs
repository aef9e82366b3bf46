//! The engine: both ends in one process, over real sockets and pipes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests listen and dial on loopback"
)]

mod accounts;
mod attacks;
mod balancer;
mod chaos;
mod fleet;
mod hostile;
mod introduce;
mod invitations;
mod lanes;
mod leave;
mod many;
mod old_peers;
mod open;
mod origins;
mod reload;
mod roles;
mod routing;
#[cfg(target_os = "linux")]
mod sandbox;
mod siege;
mod siege_join;
mod siege_socks;
mod storage_only;
mod tls;
mod tunnel;
mod unlinkable;
mod witness;
