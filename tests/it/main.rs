//! Behaviour, through the real server and a real Redis.

mod scenario;
#[path = "../common/mod.rs"]
mod support;

mod alerts;
mod archive;
mod batch;
mod clock;
mod cluster;
mod compose;
mod config;
mod contract;
mod counts;
mod deadlines;
mod docs;
mod example;
mod formats;
mod functions;
mod guarantees;
mod half_way;
mod helm;
mod image;
mod layout;
mod logs;
mod manifests;
mod measures;
mod memory;
mod observability;
mod plans;
mod process;
mod readme;
mod redis_access;
mod redis_checks;
mod redis_replicas;
mod redis_tls;
mod replay;
mod reserve;
mod scripts;
mod settling;
mod tidy;
mod tls;
mod traces;
mod track;
mod verify;
mod windows;
mod wire;
