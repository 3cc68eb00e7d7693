//! The Python examples, against the real binary, by tests of their own: `examples/python/test_*.py`.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::support::redis_server::RedisServer;
use crate::support::scratch;
use crate::support::served::Served;

#[tokio::test(flavor = "multi_thread")]
async fn the_python_examples_charge_what_was_used_however_a_stream_ends() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/python/bin/python");
    if !python.exists() {
        let told = "not tested: examples/python, as target/python is missing; `./dev test` makes it";
        assert!(std::env::var_os("CI").is_none(), "{told}");
        // Past the harness, which keeps to itself what a test says that passes.
        writeln!(std::io::stderr(), "{told}").unwrap();
        return;
    }
    let redis = RedisServer::start(scratch("example"), "");
    redis.ready().await;
    let served = Served::start(0, &["--redis-url", &redis.url(), "--redis-timeout", "4s", "--fail-open"]);
    for name in ["test_stream.py", "test_chat.py", "test_guides.py"] {
        let mut tests = Command::new(&python);
        tests.arg("-B").arg(root.join("examples/python").join(name));
        tests.env("METER_ADDRESS", served.address.to_string()).env("REDIS_PID", redis.id().to_string());
        let output = tokio::task::spawn_blocking(move || tests.output().unwrap()).await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("\nRan "), "{name}: {told}\n{}", served.log());
        assert!(!told.contains("\nRan 0 tests"), "{name}: {told}");
    }
}
