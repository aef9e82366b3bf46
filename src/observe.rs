//! What people and programs see of a running kite.

pub mod arrivals;
pub mod board;
pub mod hush;
mod journal;
pub mod log;
pub mod metrics;
pub mod progress;
pub mod score;
pub mod status;
pub mod stderr;
pub mod traffic;
pub mod view;
