//! The page about what is stored says what `lua/formats.toml` declares.

/// As `build.rs` makes it.
const GENERATED: &str = include_str!(concat!(env!("OUT_DIR"), "/redis-layout.md"));

#[test]
fn the_page_about_stored_values_is_the_one_that_the_formats_give() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/redis-layout.md");
    if std::env::var_os("TOLLGATE_WRITE_LAYOUT").is_some() {
        std::fs::write(path, GENERATED).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == GENERATED,
        "docs/reference/redis-layout.md is not what lua/formats.toml gives: run ./dev layout"
    );
}
