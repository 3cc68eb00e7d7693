//! Behaviour, through the real server and a real Redis.

mod scenario;
mod support;

mod reserve;
