//! kite gives a Tahoe-LAFS storage node behind NAT a public name without telling
//! anyone its address: a PageKite-compatible reverse tunnel that dials its frontends
//! through an embedded Tor client.
//!
//! The rooms, and what each never knows (`docs/architecture.md` has the whole picture):
//!
//! * [`wire`], [`sniff`] and [`proxy_header`]: bytes in, decisions out; no sockets, clocks or tasks.
//! * [`tunnel`]: many streams in one connection; not who dialled it.
//! * [`dial`]: every way out of the process. [`listen`]: every way in.
//! * [`tor`], a crate of its own: Arti on a guarded runtime. [`socks`]: the node's way into it.
//! * [`tls`]: trust in frontends.
//! * [`sandbox`]: what the kernel takes away. [`privilege`]: root's rights, and looks into memory.
//! * [`frontend`], [`backend`]: the two roles. [`demo`]: both at once.
//! * [`visit`]: a visitor of foolscap's kind. [`witness`]: a backend's own, who comes from outside.
//! * [`tahoe`]: the node's own configuration. [`check`]: what is wrong with it.
//! * [`web`]: what a running kite shows to its machine's browsers and to Prometheus.
//! * [`control`]: a running kite and its owner. [`reload`]: what it can be told.
//! * [`wizard`]: the questions of a first run. [`invitation`]: the line that answers most of them.
//! * [`rc`]: what pagekite.py's files mean here.
//! * [`code`]: a number for all that can go wrong. [`explain`]: what it means.
//! * [`cli`], [`config`], [`run`], [`observe`], [`shutdown`]: the surface.
//!
//! To embed a role, load a [`config::BackendConfig`] or [`config::FrontendConfig`], or write one, and hand it to
//! [`run`]; or go one floor down, to [`backend::run`] with a [`dial::Dialer`] of your own, and to [`frontend::Frontend`]
//! with a [`frontend::authority::Judge`] of your own. The repository's `examples/` do all of that.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod backend;
pub mod check;
pub mod cli;
pub mod clock;
pub mod code;
pub mod config;
pub mod control;
pub mod demo;
pub mod descriptors;
pub mod dial;
pub mod explain;
pub mod fleet;
pub mod frontend;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod household;
pub mod invitation;
pub mod kite;
pub mod listen;
pub mod observe;
pub mod plain;
pub mod privilege;
pub mod proxy_header;
pub mod random;
pub mod rc;
pub mod refusal;
pub mod reload;
pub mod run;
pub mod sandbox;
pub mod shutdown;
pub mod sniff;
pub mod socks;
pub mod tahoe;
pub mod tls;
pub mod tub;
pub mod tunnel;
pub mod visit;
pub mod way_out;
pub mod web;
mod wiped;
pub mod wire;
pub mod witness;
pub mod wizard;

pub use kite_tor as tor;
