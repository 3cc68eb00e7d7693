//! What an operator and a security reviewer expect: who may call, how much, and what happens when replicas come, go and learn new plans.
//! Through the real binary and a real Redis.

// What was seen is for the reader of the output.
#![allow(clippy::print_stdout)]

mod abuse;
mod access;
mod envoy;
mod envoy_kubernetes;
mod envoy_proxy;
mod malformed;
mod raw;
mod real_envoy;
mod rolling;
mod slow;
#[path = "../common/mod.rs"]
mod support;
