//! The text of a configuration file: it is understood, or what is wrong is told in bounds.

use std::path::Path;
use std::time::Duration;

use tollgate::config::Settings;

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Settings::default().resolve_with_file(Path::new("tollgate.toml"), &text) {
        Ok((config, given)) => {
            given.iter().for_each(|given| check_told(&text, &given.to_string()));
            assert!((1..=64).contains(&config.redis_connections));
            assert!((1..=1000).contains(&config.redis_batch));
            assert!((1..=1024).contains(&config.workers));
            let most = Duration::from_secs(366 * 24 * 3600);
            for duration in [config.redis_timeout, config.settlement_window, config.replay_window] {
                assert!(duration <= most, "{duration:?}");
            }
        }
        Err(invalid) => {
            assert!(!invalid.problems.is_empty());
            check_told(&text, &invalid.to_string());
        }
    }
}

fn check_told(text: &str, told: &str) {
    assert!(!told.is_empty() && told.len() <= 4096 + 20 * text.len(), "{} bytes of problems", told.len());
}
