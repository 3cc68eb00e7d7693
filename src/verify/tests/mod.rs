//! The checks without Redis, over a user who has something of everything. What scripts really write is in tests/it/verify.rs.

mod contradictions;
mod memories;
mod shapes;
mod world;
