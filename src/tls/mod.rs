//! TLS towards callers: certificate, key and the authorities of client certificates come from files, and are read again
//! when their content changes. A client's certificate tells its identity.

mod files;
mod identity;
mod reload;

pub use files::{Files, InvalidTls};
pub use identity::{IdentityApp, IdentityApps, InvalidIdentity, PeerIdentity};
pub use reload::Certificates;
