//! The replay example, against the real server.

use std::path::Path;
use std::process::{Command, Output};

use tollgate::catalog;

use crate::support::{Replica, scratch};

/// Runs the example, which `cargo test` has built beside the binary.
async fn replay(replica: &Replica, args: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_tollgate")).with_file_name("examples").join("replay");
    assert!(program.exists(), "build it with `cargo build --examples`");
    let mut command = Command::new(program);
    command.args(args).args(["--addr", &format!("http://{}", replica.address)]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_replay_ends_with_exact_totals_or_fails() {
    let replica = Replica::start(catalog::EXAMPLE).await;
    let directory = scratch("replay");
    std::fs::create_dir_all(&directory).unwrap();
    let trace = directory.join("trace.csv");
    let mut text = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    let (mut prompt, mut completion) = (0, 0);
    for index in 1..=300 {
        let (more, answer) = (index * 7919 % 7000 + 1, index * 31 % 900);
        text += &format!("2023-11-16 18:17:{:02}.9799600,{more},{answer}\n", index % 60);
        prompt += more;
        completion += answer;
    }
    std::fs::write(&trace, text).unwrap();
    let trace = trace.to_str().unwrap();

    let output = replay(&replica, &[trace, "--release", "0", "--users", "20", "--in-flight", "16"]).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    let totals = format!("{prompt} prompt + {completion} completion = {} tokens in 300 calls", prompt + completion);
    assert!(told.contains(&totals) && told.contains("OK: "), "{told}");

    // Some commit more than they reserved, some are released: the totals are exact all the same.
    let output = replay(&replica, &[trace, "--release", "0.3", "--users", "5", "--max-tokens", "100"]).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.contains("OK: ") && !told.contains(&totals), "{told}");

    // A plan without the groups that are read back is a failure, and so is a trace that is none.
    let output = replay(&replica, &[trace, "--plan", "team"]).await;
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let output = replay(&replica, &[concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")]).await;
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("FAILED"));
}
