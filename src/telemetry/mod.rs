//! Seeing it: metrics, spans, logs, and the HTTP port that shows the first of these.
//!
//! Data of a user never gets here: no user id, key, metadata or request id is a label, and no log line at `info` or
//! above names a user. Labels come from closed sets, or from the catalog up to a bound.

pub mod call;
mod collector;
pub mod envoy;
pub mod exposition;
pub mod labels;
pub mod layer;
pub mod logs;
pub mod metrics;
pub mod outcomes;
mod process;
pub(crate) mod throttle;
pub mod trace;

pub use metrics::metrics;
