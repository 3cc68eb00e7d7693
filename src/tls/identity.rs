//! The identity of a client, from its certificate, and the app it belongs to.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::domain::id::AppId;

/// The names in a client certificate that was verified: `dns:name` (in lower case) and `uri:spiffe://...` of its subject alternative
/// names, or `cn:name` if it has none of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerIdentity {
    names: Vec<String>,
}

impl PeerIdentity {
    /// Reads the names of a certificate. One that cannot be read has none.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = parse_x509_certificate(certificate) else { return Self::default() };
        let names = match certificate.subject_alternative_name() {
            // RFC 6125, section 6.4.4: the common name counts only where there is no other.
            Ok(None) => {
                let names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
                names.map(|name| format!("cn:{name}")).collect()
            }
            Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name).collect(),
            // There twice, or not to be read: it says nothing that can be trusted.
            Err(_) => Vec::new(),
        };
        Self { names }
    }

    /// The names, as `tls-client-app` writes them.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

fn name(general: &GeneralName<'_>) -> Option<String> {
    match general {
        GeneralName::DNSName(name) => Some(format!("dns:{}", name.to_ascii_lowercase())),
        GeneralName::URI(uri) => Some(format!("uri:{uri}")),
        _ => None,
    }
}

/// One entry of `tls-client-app`: `IDENTITY=APP`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityApp {
    /// The identity, in the form of [`PeerIdentity::names`].
    pub identity: String,
    /// The app whose clients carry it.
    pub app: AppId,
}

/// The text is not an entry of `tls-client-app`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write IDENTITY=APP: dns:NAME, uri:URI or cn:NAME of the certificate, and 1 to 64 of a to z, 0 to 9, - and _ for the app"
)]
pub struct InvalidIdentity;

impl FromStr for IdentityApp {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        // A URI may have an equals sign, an app has none.
        let (identity, app) = text.rsplit_once('=').ok_or(InvalidIdentity)?;
        let app = AppId::parse(app).map_err(|_| InvalidIdentity)?;
        let identity = match identity.split_once(':') {
            Some(("dns", name)) if !name.is_empty() => identity.to_ascii_lowercase(),
            Some(("uri", uri)) if uri.contains(':') => identity.to_owned(),
            Some(("cn", name)) if !name.is_empty() => identity.to_owned(),
            _ => return Err(InvalidIdentity),
        };
        Ok(Self { identity, app })
    }
}

impl fmt::Display for IdentityApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.identity, self.app)
    }
}

/// The apps of client identities.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentityApps(BTreeMap<String, AppId>);

impl IdentityApps {
    /// Puts entries together.
    ///
    /// # Errors
    /// The identity that is given to two apps.
    pub fn new(entries: &[IdentityApp]) -> Result<Self, String> {
        let mut apps = BTreeMap::new();
        for IdentityApp { identity, app } in entries {
            match apps.entry(identity.clone()) {
                Entry::Occupied(known) if known.get() != app => return Err(identity.clone()),
                Entry::Occupied(_) => {}
                Entry::Vacant(place) => drop(place.insert(app.clone())),
            }
        }
        Ok(Self(apps))
    }

    /// The app of a client. One whose names are of several apps is of none: which of them is meant is not ours to guess.
    #[must_use]
    pub fn app_for(&self, peer: &PeerIdentity) -> Option<AppId> {
        let mut apps = peer.names.iter().filter_map(|name| self.0.get(name));
        let first = apps.next()?;
        apps.all(|app| app == first).then(|| first.clone())
    }

    /// Returns whether no identity belongs to an app.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: &str, names: &[SanType]) -> CertificateDer<'static> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        parameters.subject_alt_names = names.to_vec();
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    #[test]
    fn the_names_of_a_certificate_are_its_alternative_names_or_else_its_common_name() {
        let names = |common, names: &[SanType]| PeerIdentity::of(&certificate(common, names)).names().to_vec();
        assert_eq!(names("Chat", &[]), ["cn:Chat"]);
        assert_eq!(
            names("Chat", &[dns("Chat.Example"), uri("spiffe://td/Chat")]),
            ["dns:chat.example", "uri:spiffe://td/Chat"]
        );
        // An address is none of these, and yet a name: the common name does not count beside it.
        assert_eq!(names("Chat", &[SanType::IpAddress([127, 0, 0, 1].into())]), Vec::<String>::new());
        assert_eq!(PeerIdentity::of(&CertificateDer::from(b"no certificate".to_vec())), PeerIdentity::default());
    }

    #[test]
    fn an_entry_names_an_identity_and_an_app() {
        for (text, shown) in [
            ("dns:Chat.Example=chat", "dns:chat.example=chat"),
            ("uri:spiffe://td/Chat?a=b=chat-2", "uri:spiffe://td/Chat?a=b=chat-2"),
            ("cn:Some one=a", "cn:Some one=a"),
        ] {
            assert_eq!(text.parse::<IdentityApp>().unwrap().to_string(), shown);
        }
        for text in
            ["", "dns:a", "dns:=a", "a=b", "ip:1.2.3.4=a", "dns:a=", "dns:a=A b", "uri:=a", "uri:a=b", "cn:=a", "=a"]
        {
            assert_eq!(text.parse::<IdentityApp>(), Err(InvalidIdentity), "{text}");
        }
    }

    #[test]
    fn a_client_is_of_the_one_app_that_its_names_say() {
        let apps = |entries: &[&str]| {
            IdentityApps::new(&entries.iter().map(|entry| entry.parse().unwrap()).collect::<Vec<_>>())
        };
        let known = apps(&["dns:a=one", "dns:b=two", "uri:x:y=one", "dns:a=one"]).unwrap();
        let app = |names: &[&str]| {
            let peer = PeerIdentity { names: names.iter().map(|name| (*name).to_owned()).collect() };
            known.app_for(&peer).map(|app| app.as_str().to_owned())
        };
        assert_eq!(app(&["dns:a"]).as_deref(), Some("one"));
        assert_eq!(app(&["dns:c", "uri:x:y", "dns:a"]).as_deref(), Some("one"));
        assert_eq!(app(&["dns:a", "dns:b"]), None, "of two apps is of none");
        assert_eq!(app(&["cn:a"]), None);
        assert_eq!(app(&[]), None);
        assert_eq!(apps(&["dns:A=one", "dns:a=two"]), Err("dns:a".to_owned()));
    }
}
