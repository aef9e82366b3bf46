//! What people and programs see of a running kite.

pub mod log;
pub mod progress;
