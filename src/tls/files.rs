//! Loads the TLS configuration from files, or reports the problem of each file.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use x509_parser::parse_x509_certificate;

/// More than any chain of certificates needs.
const LONGEST: u64 = 1 << 20;

/// The PEM files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The server's certificate, and then the chain that leads to its authority.
    pub cert: PathBuf,
    /// The private key of that certificate.
    pub key: PathBuf,
    /// The authorities of client certificates, which are required then.
    pub client_ca: Option<PathBuf>,
}

/// The contents of the files, or the reason why one cannot be read.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    cert: Result<Vec<u8>, String>,
    key: Result<Vec<u8>, String>,
    client_ca: Option<Result<Vec<u8>, String>>,
}

/// The problems of the files.
#[derive(Debug)]
pub struct InvalidTls {
    /// The problems. Each is one sentence, which names the file.
    pub problems: Vec<String>,
}

impl std::error::Error for InvalidTls {}

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TLS cannot be served with these files:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// The TLS configuration.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// The end of the validity of the server's own certificate.
    pub(super) valid_until: String,
    /// Warnings about certificates that are used all the same.
    pub(super) warnings: Vec<String>,
}

impl Files {
    /// Reads all of them, however slow the disk.
    pub(super) fn read(&self) -> Contents {
        Contents { cert: read(&self.cert), key: read(&self.key), client_ca: self.client_ca.as_deref().map(read) }
    }

    /// Makes something of their contents.
    ///
    /// # Errors
    /// Every problem at once.
    pub(super) fn load(&self, contents: &Contents) -> Result<Loaded, InvalidTls> {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let mut noted = |found: Result<_, String>| found.map_err(|problem| problems.push(problem)).ok();
        let chain = noted(certificates("tls-cert", &self.cert, &contents.cert));
        let authorities = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(content)) => noted(certificates("tls-client-ca", path, content)),
            _ => None,
        };
        let key = key(&self.key, &contents.key).map_err(|problem| problems.push(problem)).ok();
        let roots = authorities.map(|authorities| {
            authorities.into_iter().enumerate().fold(RootCertStore::empty(), |mut roots, (index, authority)| {
                let path = self.client_ca.as_deref().unwrap_or(Path::new(""));
                let named = format!("certificate {} of tls-client-ca {}", index + 1, path.display());
                warnings.extend(validity(&authority).and_then(|validity| validity.warning(&named)));
                if let Err(error) = roots.add(authority) {
                    problems.push(format!("{named} cannot be an authority: {error}"));
                }
                roots
            })
        });
        let mut valid_until = String::new();
        if let Some(validity) = chain.as_deref().and_then(|chain| validity(&chain[0])) {
            warnings.extend(validity.warning(&format!("the certificate of tls-cert {}", self.cert.display())));
            valid_until = validity.until;
        }
        if let (Some(chain), Some(key), true) = (chain, key, problems.is_empty()) {
            match config(chain, key, roots) {
                Ok(config) => return Ok(Loaded { config: Arc::new(config), valid_until, warnings }),
                Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => problems.push(format!(
                    "the key of tls-key {} does not belong to the first certificate of tls-cert {}: the server's own certificate comes \
                     first, then its chain",
                    self.key.display(),
                    self.cert.display()
                )),
                Err(error) => problems.push(format!(
                    "tls-cert {} and tls-key {} cannot be used: {error}",
                    self.cert.display(),
                    self.key.display()
                )),
            }
        }
        Err(InvalidTls { problems })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        // Through links: Kubernetes mounts a link to a link.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LONGEST {
            return Err(std::io::Error::other("it is longer than 1 MiB"));
        }
        Ok(content)
    };
    read().map_err(|error| error.to_string())
}

/// Reads the certificates of a file: at least one.
fn certificates(
    setting: &str,
    path: &Path,
    content: &Result<Vec<u8>, String>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = format!("{setting} {}", path.display());
    let content = content.as_ref().map_err(|error| format!("cannot read {named}: {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let found = found.map_err(|error| format!("{named} is not PEM: {error}"))?;
    for (index, certificate) in found.iter().enumerate() {
        if parse_x509_certificate(certificate).is_err() {
            return Err(format!("certificate {} of {named} cannot be read: it is not an X.509 certificate", index + 1));
        }
    }
    if found.is_empty() {
        return Err(format!("{named} has no certificate: there is no BEGIN CERTIFICATE in it"));
    }
    Ok(found)
}

/// Reads the first key. An error does not contain its text.
fn key(path: &Path, content: &Result<Vec<u8>, String>) -> Result<PrivateKeyDer<'static>, String> {
    let named = format!("tls-key {}", path.display());
    let content = content.as_ref().map_err(|error| format!("cannot read {named}: {error}"))?;
    match PrivateKeyDer::pem_slice_iter(content).next() {
        Some(Ok(key)) => match ring::sign::any_supported_type(&key) {
            Ok(_) => Ok(key),
            Err(_) => {
                Err(format!("the key of {named} cannot be used: give an RSA, ECDSA (P-256, P-384) or Ed25519 key"))
            }
        },
        Some(Err(_)) => Err(format!("{named} is not PEM")),
        None if content.windows(21).any(|words| words == b"ENCRYPTED PRIVATE KEY") => {
            Err(format!("the key of {named} is encrypted: give one without a passphrase"))
        }
        None => Err(format!("{named} has no key: there is no BEGIN PRIVATE KEY in it")),
    }
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Option<RootCertStore>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is taken up again is not verified again, though the client's certificate may have expired. Connections live long:
    // little is lost.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The validity period of a certificate.
struct Validity {
    from: String,
    until: String,
    begun: bool,
    ended: bool,
}

fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let validity = certificate.validity();
    let now = jiff::Timestamp::now().as_second();
    let shown =
        |seconds| jiff::Timestamp::from_second(seconds).map_or_else(|_| "an odd time".to_owned(), |at| at.to_string());
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Some(Validity { from: shown(from), until: shown(until), begun: from <= now, ended: until < now })
}

impl Validity {
    fn warning(&self, named: &str) -> Option<String> {
        match self {
            Self { ended: true, until, .. } => Some(format!("{named} expired at {until}: it will be refused")),
            Self { begun: false, from, .. } => {
                Some(format!("{named} is valid only from {from}: it will be refused until then"))
            }
            _ => None,
        }
    }
}
