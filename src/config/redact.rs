//! Removes secrets from values before they are shown.

/// The text that replaces a secret.
const HIDDEN: &str = "***";

/// A value without the secrets in it: in a URL the password, and everything before the host if no user can be told from it; the
/// whole of another text if `secret`, which says that the setting holds secrets.
///
/// A password that was not encoded as it should be is hidden as well: it ends at the last `@` of all.
#[must_use]
pub fn redacted(value: &str, secret: bool) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return if secret { HIDDEN.to_owned() } else { value.to_owned() };
    };
    let (credentials, place) = match rest.rsplit_once('@') {
        None => (String::new(), rest),
        Some((credentials, place)) => match credentials.split_once(':') {
            Some((user, _)) => (format!("{user}:{HIDDEN}@"), place),
            None => (format!("{HIDDEN}@"), place),
        },
    };
    // The URL of a Unix socket has its password behind the path.
    let place = match place.split_once('?') {
        None => place.to_owned(),
        Some((path, query)) => {
            let shown = query.split('&').map(|pair| match pair.split_once('=') {
                Some((name, _)) if name.to_ascii_lowercase().contains("pass") => format!("{name}={HIDDEN}"),
                _ => pair.to_owned(),
            });
            format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
        }
    };
    format!("{scheme}://{credentials}{place}")
}
