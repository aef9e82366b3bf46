//! The first run: a few questions instead of a file.

pub mod ask;
pub mod backend;
pub mod frontend;
mod run;

pub use run::{FirstRun, FirstRunError, backend as run_backend, frontend as run_frontend};

#[cfg(test)]
mod script;
