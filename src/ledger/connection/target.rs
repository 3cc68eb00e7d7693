//! What the URLs name: one node, or a cluster.

use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::{ConnectError, RedisOptions};

/// What to connect to, and with which credentials.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// One address, whoever is behind it.
    Node(Box<ConnectionInfo>),
    /// Some nodes of a cluster, which know the others.
    Cluster(Vec<ConnectionInfo>),
}

impl Target {
    pub(super) fn of(options: &RedisOptions) -> Result<Self, ConnectError> {
        let bad_url = |number, source| ConnectError::BadUrl { number, source };
        let nodes = parse(&options.urls, bad_url)?;
        match <[ConnectionInfo; 1]>::try_from(nodes) {
            Ok([node]) => Ok(Self::Node(Box::new(node))),
            Err(nodes) if nodes.is_empty() => Err(ConnectError::NoUrl),
            Err(nodes) if nodes.iter().any(|node| is_unix(node) || node.redis_settings().db() != 0) => {
                Err(ConnectError::Misfit("the nodes of a cluster are named as redis://host:port, without a database"))
            }
            Err(nodes) => Ok(Self::Cluster(nodes)),
        }
    }
}

fn parse(
    urls: &[String],
    bad: impl Fn(usize, redis::RedisError) -> ConnectError,
) -> Result<Vec<ConnectionInfo>, ConnectError> {
    let parse = |(index, url): (usize, &String)| {
        let info = url.as_str().into_connection_info().map_err(|source| bad(index + 1, source))?;
        Ok(info.set_tcp_settings(tcp()))
    };
    urls.iter().enumerate().map(parse).collect()
}

fn is_unix(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::Unix(_))
}

/// The same credentials and TLS at another address.
pub(super) fn at(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    info.clone().set_addr(address)
}

pub(super) fn tcp() -> TcpSettings {
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    // Keepalive is silent while something is unacknowledged: this is how long a peer may stay silent then.
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(10));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(urls: &[&str]) -> Result<Target, ConnectError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Target::of(&RedisOptions {
            urls: owned(urls),
            connections: 1,
            timeout: Duration::from_secs(1),
            allow_eviction: false,
        })
    }

    fn refusal(urls: &[&str]) -> String {
        target(urls).unwrap_err().to_string()
    }

    #[test]
    fn one_url_is_a_node_and_several_are_a_cluster() {
        assert!(matches!(target(&["redis://a:1/3"]), Ok(Target::Node(node)) if node.redis_settings().db() == 3));
        assert!(matches!(target(&["unix:///a"]), Ok(Target::Node(_))));
        assert!(matches!(target(&["redis://a:1", "redis://b"]), Ok(Target::Cluster(nodes)) if nodes.len() == 2));
        assert!(refusal(&["redis://a:1", "unix:///b"]).contains("nodes of a cluster"));
        assert!(refusal(&["redis://a:1", "redis://b/2"]).contains("without a database"));
        assert!(refusal(&[]).contains("no Redis URL"));
    }
}
