//! Tests of the checks without Redis, over a user who has something of everything. tests/it/verify.rs checks data that
//! scripts wrote.

mod contradictions;
mod memories;
mod shapes;
mod world;
