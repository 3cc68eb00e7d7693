//! Tollgate's identity towards Redis, and its trust in Redis: users, passwords and certificates that live in files.
//!
//! Files are read at the start, so that a mistake ends the start, and again for each connection, so that new contents
//! are used by the next one.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use redis::cluster::ClusterClientBuilder;
use redis::{
    AsyncConnectionConfig, BasicAuth, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError,
    StreamingCredentialsProvider, TlsCertificates,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_stream::Stream;

use super::{AnyError, ConnectError};

/// The access to Redis, as far as URLs do not describe it. It holds only paths and a user's name, so it can be printed.
#[derive(Debug, Clone, Default)]
pub struct RedisAccess {
    /// The user of an access list; none: that of the URL, or Redis's default.
    pub user: Option<String>,
    /// Holds the password of that user.
    pub password_file: Option<PathBuf>,
    /// Holds the password for the Sentinels, whose user is named by their URLs.
    pub sentinel_password_file: Option<PathBuf>,
    /// Certificates (PEM) of the authorities that may vouch for Redis; none: those that browsers trust.
    pub ca: Option<PathBuf>,
    /// The certificate (PEM) that Tollgate shows to Redis, with those between it and its authority.
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

/// Tollgate's identity towards servers of one kind.
#[derive(Clone, Default)]
pub(in crate::ledger) struct Identity {
    credentials: Option<Credentials>,
    tls: Option<Arc<TlsFiles>>,
}

/// A user, and the file that holds the password of the moment.
#[derive(Clone)]
struct Credentials {
    user: String,
    file: Arc<Path>,
}

#[derive(Debug)]
struct TlsFiles {
    ca: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl RedisAccess {
    /// Returns the identity towards the servers that keep the counters.
    pub(in crate::ledger) fn identity(&self, urls: &[ConnectionInfo]) -> Result<Identity, ConnectError> {
        if self.user.is_some() && urls.iter().any(|url| url.redis_settings().username().is_some()) {
            return Err(ConnectError::Misfit(
                "a user is named by --redis-url and by --redis-user: leave one of them out",
            ));
        }
        if self.password_file.is_some() && urls.iter().any(|url| url.redis_settings().password().is_some()) {
            return Err(ConnectError::Misfit(
                "a password is in --redis-url and in --redis-password-file: leave one of them out",
            ));
        }
        if self.user.is_some() && self.password_file.is_none() {
            return Err(ConnectError::Misfit("--redis-user needs --redis-password-file"));
        }
        let user = self.user.as_deref();
        self.presenting(user, self.password_file.as_deref(), "redis-password-file", urls)
    }

    /// Returns the identity towards the Sentinels.
    pub(super) fn sentinel_identity(&self, urls: &[ConnectionInfo]) -> Result<Identity, ConnectError> {
        let file = self.sentinel_password_file.as_deref();
        if file.is_some() && urls.is_empty() {
            return Err(ConnectError::Misfit(
                "--redis-sentinel-password-file needs --redis-sentinel, which is not set",
            ));
        }
        if file.is_some() && urls.iter().any(|url| url.redis_settings().password().is_some()) {
            return Err(ConnectError::Misfit(
                "a password is in --redis-sentinel and in --redis-sentinel-password-file: leave one of them out",
            ));
        }
        self.presenting(None, file, "redis-sentinel-password-file", urls)
    }

    fn presenting(
        &self,
        user: Option<&str>,
        file: Option<&Path>,
        setting: &'static str,
        urls: &[ConnectionInfo],
    ) -> Result<Identity, ConnectError> {
        let insecure = |url: &ConnectionInfo| matches!(url.addr(), ConnectionAddr::TcpTls { insecure: true, .. });
        if urls.iter().any(insecure) {
            return Err(ConnectError::Misfit(
                "#insecure in a URL would trust whoever answers: leave it out, and name the authority of Redis's certificate by --redis-ca",
            ));
        }
        let named = urls.iter().filter_map(|url| url.redis_settings().username()).collect::<Vec<_>>();
        if file.is_some() && named.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(ConnectError::Misfit("with a password file all URLs name the same user"));
        }
        let user = user.or(named.first().copied()).unwrap_or("default").to_owned();
        let credentials = file.map(|file| Credentials { user, file: file.into() });
        if let Some(credentials) = &credentials {
            let unusable = |source| ConnectError::Unusable { setting, path: credentials.file.to_path_buf(), source };
            credentials.read().map_err(unusable)?;
        }
        Ok(Identity { credentials, tls: self.tls()?.map(Arc::new) })
    }

    fn tls(&self) -> Result<Option<TlsFiles>, ConnectError> {
        let client = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => {
                return Err(ConnectError::Misfit(
                    "--redis-cert and --redis-key go together: name both files, or neither",
                ));
            }
        };
        if client.is_none() && self.ca.is_none() {
            return Ok(None);
        }
        let certificates = |setting: &'static str, path: &PathBuf| {
            let unusable = |source| ConnectError::Unusable { setting, path: path.clone(), source };
            let text = std::fs::read(path).map_err(|error| unusable(error.into()))?;
            let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
            match read.map_err(|error| unusable(error.to_string().into()))?.len() {
                0 => Err(unusable("there is no certificate in it".into())),
                _ => Ok(()),
            }
        };
        if let Some(ca) = &self.ca {
            certificates("redis-ca", ca)?;
        }
        if let Some((cert, key)) = &client {
            certificates("redis-cert", cert)?;
            let unusable = |source| ConnectError::Unusable { setting: "redis-key", path: key.clone(), source };
            let text = std::fs::read(key).map_err(|error| unusable(error.into()))?;
            PrivateKeyDer::from_pem_slice(&text).map_err(|_| unusable("there is no private key in it".into()))?;
        }
        Ok(Some(TlsFiles { ca: self.ca.clone(), client }))
    }

    /// Returns whether a setting names TLS files.
    pub(super) fn names_certificates(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }
}

impl Identity {
    /// Adds the present certificates to a connection over TLS.
    pub(in crate::ledger) fn with_certificates(&self, info: ConnectionInfo) -> Result<ConnectionInfo, RedisError> {
        match self.certificates()? {
            Some(certificates) if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => {
                Ok(redis::Client::build_with_tls(info, certificates)?.get_connection_info().clone())
            }
            _ => Ok(info),
        }
    }

    /// The certificates of the moment, if files hold any.
    fn certificates(&self) -> Result<Option<TlsCertificates>, RedisError> {
        let Some(files) = &self.tls else { return Ok(None) };
        let client = files.client.as_ref().map(|(cert, key)| {
            Ok::<_, RedisError>(ClientTlsConfig { client_cert: std::fs::read(cert)?, client_key: std::fs::read(key)? })
        });
        let root_cert = files.ca.as_ref().map(std::fs::read).transpose()?;
        Ok(Some(TlsCertificates { client_tls: client.transpose()?, root_cert }))
    }

    /// Returns a provider that reads the password again for each connection, if a file holds it.
    pub(in crate::ledger) fn password(&self) -> Option<impl StreamingCredentialsProvider + use<>> {
        self.credentials.clone()
    }

    /// Connections that present this identity.
    pub(super) fn present(&self, config: AsyncConnectionConfig) -> AsyncConnectionConfig {
        match self.password() {
            Some(password) => config.set_credentials_provider(password),
            None => config,
        }
    }

    /// Presents this identity, as [`Self::present`] does, to all nodes of a cluster.
    pub(in crate::ledger) fn present_to_cluster(
        &self,
        mut builder: ClusterClientBuilder,
    ) -> Result<ClusterClientBuilder, RedisError> {
        if let Some(certificates) = self.certificates()? {
            builder = builder.certs(certificates);
        }
        if let Some(password) = self.password() {
            builder = builder.set_credentials_provider(password);
        }
        Ok(builder)
    }

    /// Returns whether a refused connection might be accepted with the present content of the files.
    pub(super) fn may_have_changed(&self, error: &RedisError) -> bool {
        // A cluster has no connection to a node that has refused one.
        let broken = error.is_io_error() || error.kind() == ErrorKind::ClusterConnectionNotFound;
        is_refusal(error) || (self.tls.is_some() && broken)
    }
}

/// Returns whether Redis does not accept the password. It may accept it later, once Redis knows the password in the
/// file, or the file has the one of Redis.
fn is_refusal(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

impl Credentials {
    fn read(&self) -> Result<BasicAuth, AnyError> {
        let text = std::fs::read(&self.file)?;
        // Not the decoder's error, which would show what it met.
        let text = String::from_utf8(text).map_err(|_| "it is not text in UTF-8")?;
        let password = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
        if password.is_empty() {
            return Err("it is empty".into());
        }
        Ok(BasicAuth::new(self.user.clone(), password.to_owned()))
    }
}

impl StreamingCredentialsProvider for Credentials {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = Result<BasicAuth, RedisError>> + Send + 'static>> {
        let told = |error: AnyError| {
            let text = format!("{}: {error}", self.file.display());
            RedisError::from((ErrorKind::AuthenticationFailed, "cannot read the password file", text))
        };
        // Gives the password once. An open connection needs no further one.
        Box::pin(tokio_stream::StreamExt::chain(tokio_stream::once(self.read().map_err(told)), tokio_stream::pending()))
    }
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo as _;

    use super::*;

    fn urls(texts: &[&str]) -> Vec<ConnectionInfo> {
        texts.iter().map(|text| text.into_connection_info().unwrap()).collect()
    }

    fn refusal(access: &RedisAccess, texts: &[&str]) -> String {
        access.identity(&urls(texts)).err().expect("it is refused").to_string()
    }

    #[test]
    fn a_password_is_the_files_text_without_its_last_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let credentials = Credentials { user: "u".to_owned(), file: file.clone().into() };
        for (text, password) in [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), (" p \n\n", " p \n"), ("\u{e4}", "\u{e4}")] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(credentials.read().unwrap().password(), password, "{text:?}");
        }
        let access = RedisAccess { password_file: Some(file.clone()), ..RedisAccess::default() };
        for text in [&b""[..], b"\n", b"secret\xff"] {
            std::fs::write(&file, text).unwrap();
            let told = refusal(&access, &["redis://a"]);
            assert!(told.contains("redis-password-file") && told.contains("password"), "{told}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(refusal(&access, &["redis://a"]).contains("redis-password-file"));
    }

    #[test]
    fn what_contradicts_itself_is_refused_without_passwords() {
        let file = || Some(PathBuf::from("/nonexistent"));
        let with_file = RedisAccess { password_file: file(), ..RedisAccess::default() };
        let with_user = RedisAccess { user: Some("u".to_owned()), ..RedisAccess::default() };
        let half = RedisAccess { cert: file(), ..RedisAccess::default() };
        for (access, url, expected) in [
            (&with_file, "redis://:secret@a", "leave one of them out"),
            (&with_user, "redis://other@a", "leave one of them out"),
            (&with_user, "redis://a", "needs --redis-password-file"),
            (&half, "rediss://a", "go together"),
            (&RedisAccess::default(), "rediss://:secret@a/#insecure", "--redis-ca"),
        ] {
            let told = refusal(access, &[url]);
            assert!(told.contains(expected) && !told.contains("secret"), "{told}");
        }
        let sentinel = RedisAccess { sentinel_password_file: file(), ..RedisAccess::default() };
        assert!(sentinel.sentinel_identity(&[]).is_err());
        assert!(sentinel.sentinel_identity(&urls(&["redis://:secret@a"])).is_err());
    }

    #[test]
    fn files_that_are_no_certificates_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file.pem");
        std::fs::write(&file, "no certificate").unwrap();
        let told = refusal(&RedisAccess { ca: Some(file.clone()), ..RedisAccess::default() }, &["rediss://a"]);
        assert!(told.contains("redis-ca") && told.contains("file.pem"), "{told}");
        let pair = RedisAccess { cert: Some(file.clone()), key: Some(file), ..RedisAccess::default() };
        assert!(refusal(&pair, &["rediss://a"]).contains("redis-cert"));
    }
}
