//! What TLS is spoken with now: it follows the files.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;

use super::files::{Contents, Files, InvalidTls, Loaded};

/// How often the files are looked at. By content, as neither times nor names tell of a mount that was swapped by a link.
const PERIOD: Duration = Duration::from_secs(2);

/// The files and what was made of them.
pub struct Certificates {
    files: Files,
    in_force: Contents,
    current: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// Every problem with them at once.
    pub fn load(files: Files) -> Result<Self, InvalidTls> {
        let contents = files.read();
        let loaded = files.load(&contents)?;
        tell(&loaded, "TLS is on");
        Ok(Self { files, in_force: contents, current: watch::Sender::new(loaded.config) })
    }

    /// What new connections are to be spoken to with, now and after every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// Follows the files for as long as it runs. What cannot be used is refused, and what was there before stays in force.
    pub async fn follow(mut self) {
        let mut seen: Option<Contents> = None;
        let mut told = false;
        loop {
            tokio::time::sleep(PERIOD).await;
            let files = self.files.clone();
            // The disk may be slow, and the thread serves calls.
            let Ok(contents) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            if contents == self.in_force {
                if told {
                    tracing::info!("the files of TLS are again those that are in force");
                }
                (seen, told) = (None, false);
                continue;
            }
            let again = seen.as_ref() == Some(&contents);
            if again && told {
                continue;
            }
            match self.files.load(&contents) {
                Ok(loaded) => {
                    tell(&loaded, "TLS: new certificates are in force for new connections");
                    self.current.send_replace(loaded.config);
                    self.in_force = contents;
                    (seen, told) = (None, false);
                }
                // It may be half of a change, such as a certificate whose key is yet to be written: told if it stays.
                Err(invalid) => {
                    if again {
                        tracing::error!(
                            "the changed files of TLS are refused, and the former stay in force: {invalid}"
                        );
                    }
                    (seen, told) = (Some(contents), again);
                }
            }
        }
    }
}

fn tell(loaded: &Loaded, what: &str) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(valid_until = loaded.valid_until, "{what}");
}
