//! The TLS configuration in force. It follows the files.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;

use super::files::{Contents, Files, InvalidTls, Loaded};

/// The interval at which the files are read. Their contents are compared: neither times nor names reveal a mount that
/// was swapped by a link.
const PERIOD: Duration = Duration::from_secs(2);

/// The files, and the TLS configuration made from them.
pub struct Certificates {
    watched: Watched,
    current: watch::Sender<Arc<ServerConfig>>,
}

/// The files, and the contents that were seen.
struct Watched {
    files: Files,
    in_force: Contents,
    /// The unusable contents that were found last.
    bad: Option<Contents>,
    /// True if they were reported.
    told: bool,
}

/// The result of a look at the files.
enum Look {
    /// Nothing new to report.
    Same,
    /// The contents in force are back, after unusable ones.
    Back,
    /// Something new that can be used.
    New(Loaded),
    /// New contents that cannot be used, and that are not a change half way.
    Bad(InvalidTls),
}

impl Watched {
    fn look(&mut self, contents: Contents) -> Look {
        if contents == self.in_force {
            self.bad = None;
            return if std::mem::take(&mut self.told) { Look::Back } else { Look::Same };
        }
        let again = self.bad.as_ref() == Some(&contents);
        if again && self.told {
            return Look::Same;
        }
        match self.files.load(&contents) {
            Ok(loaded) => {
                (self.in_force, self.bad, self.told) = (contents, None, false);
                Look::New(loaded)
            }
            Err(invalid) => {
                (self.bad, self.told) = (Some(contents), again);
                // It may be half of a change, such as a certificate whose key is yet to be written: it is told if it stays.
                if again { Look::Bad(invalid) } else { Look::Same }
            }
        }
    }
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
        let watched = Watched { files, in_force: contents, bad: None, told: false };
        Ok(Self { watched, current: watch::Sender::new(loaded.config) })
    }

    /// Returns the configuration for new connections, now and after every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// Follows the files for as long as it runs. Unusable contents are refused, and the former ones stay in force.
    pub async fn follow(self) {
        let Self { mut watched, current } = self;
        loop {
            tokio::time::sleep(PERIOD).await;
            let files = watched.files.clone();
            // The disk may be slow, and the thread serves calls.
            let Ok(contents) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            match watched.look(contents) {
                Look::Same => {}
                Look::Back => tracing::info!("the TLS files have their former content again, which is in force"),
                Look::New(loaded) => {
                    tell(&loaded, "TLS: new certificates are in force for new connections");
                    current.send_replace(loaded.config);
                }
                Look::Bad(invalid) => {
                    tracing::error!("refused the changed TLS files, and kept the former ones: {invalid}");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The look of the files as they are now, in a letter.
    fn look(watched: &mut Watched) -> char {
        let contents = watched.files.read();
        match watched.look(contents) {
            Look::Same => '-',
            Look::Back => 'b',
            Look::New(_) => 'n',
            Look::Bad(_) => '!',
        }
    }

    #[test]
    fn each_change_is_told_once_and_a_change_half_way_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert", "key"].map(|name| directory.path().join(name));
        let pair = || {
            let made = rcgen::generate_simple_self_signed(["tollgate.test".to_owned()]).unwrap();
            (made.cert.pem(), made.signing_key.serialize_pem())
        };
        let ((first, first_key), (second, second_key)) = (pair(), pair());
        let write = |text: &str, with: &str| {
            std::fs::write(&cert, text).unwrap();
            std::fs::write(&key, with).unwrap();
        };
        write(&first, &first_key);
        let files = Files { cert: cert.clone(), key: key.clone(), client_ca: None };
        let mut watched = Certificates::load(files).unwrap().watched;
        let mut looks = |times: usize| (0..times).map(|_| look(&mut watched)).collect::<String>();
        assert_eq!(looks(2), "--");
        write(&second, &first_key);
        assert_eq!(looks(1), "-", "the key is yet to come");
        write(&second, &second_key);
        assert_eq!(looks(3), "n--");
        write(&first, &second_key);
        assert_eq!(looks(4), "-!--", "it stays");
        write("", &second_key);
        assert_eq!(looks(4), "-!--", "another change");
        std::fs::remove_file(&key).unwrap();
        assert_eq!(looks(4), "-!--");
        write(&second, &second_key);
        assert_eq!(looks(3), "b--");
        write(&second, "");
        assert_eq!(looks(1), "-");
        write(&second, &second_key);
        assert_eq!(looks(2), "--", "nothing was told of it");
    }
}
