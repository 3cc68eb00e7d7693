//! Prometheus's own tool, where it can be found.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// `promtool` from the PATH, or from where `./dev test` puts it. Where there is none, tells what is not checked.
fn promtool(unchecked: &str) -> Option<Command> {
    let places =
        [Path::new("promtool").to_owned(), Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/promtool")];
    let found = places.into_iter().find(|place| Command::new(place).arg("--version").output().is_ok());
    if found.is_none() {
        // Past the test harness, which keeps to itself what a test prints that passes.
        let skipped = format!("NOT CHECKED, as there is no promtool: {unchecked}. `./dev test` brings it.\n");
        std::io::stderr().write_all(skipped.as_bytes()).expect("stderr can be written");
    }
    found.map(Command::new)
}

/// Holds a scrape in the text format of Prometheus against its linter.
pub fn check_metrics(text: &str) {
    let Some(mut promtool) = promtool("that promtool check metrics accepts /metrics") else { return };
    let pipes = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("promtool can be run");
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && told.is_empty(), "{}", String::from_utf8_lossy(&told));
}
