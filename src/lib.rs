//! Tollgate meters what each end-user of an AI product consumes, and refuses the call that would break the user's plan before it
//! runs.
//!
//! A request flows one way and comes back the same way: [`grpc`] parses it, [`meter`] decides which plan applies (with
//! [`planner`]), [`ledger`] runs one atomic Lua script in Redis. The scripts match, price, decide and count.
//!
//! The guarantees, by the names that comments and tests use: NO-OVERSHOOT, ALL-OR-NOTHING, NO-LEAK, ONCE, TRUTH, EXACT, ONE-CLOCK,
//! SELF-CONTAINED. docs/concepts/guarantees.md explains them.

pub mod domain;
pub mod rpc;

pub mod telemetry;

pub mod catalog;
pub mod ledger;
pub mod planner;

pub mod batch;
pub mod meter;
pub mod reservations;
pub mod subscriptions;

pub mod access;
pub mod apps;

pub mod tls;

pub mod admin;
pub mod grpc;
pub mod health;
pub mod server;

pub mod verify;

pub mod commands;
pub mod config;
pub mod open_files;
pub mod private_redis;
