//! The target that the URLs name: one node, a group of nodes that Sentinels watch, or a cluster.

use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::access::Identity;
use super::{ConnectError, RedisOptions};

/// The target to connect to, with its credentials.
#[derive(Clone)]
pub(super) enum Target {
    /// A single address, whatever is behind it.
    Node(Box<ConnectionInfo>, Identity),
    /// The node that the Sentinels call master.
    Sentinels(Box<Watched>),
    /// Some nodes of a cluster, which know the others.
    Cluster(Vec<ConnectionInfo>, Identity),
}

/// A master and its replicas, under the name by which the Sentinels know them.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) name: String,
    /// The credentials and TLS of the master. Its host is only the name that the Sentinels know.
    pub(super) master: ConnectionInfo,
    pub(super) sentinels: Vec<ConnectionInfo>,
    /// The identities towards the servers and towards the Sentinels.
    pub(super) identities: (Identity, Identity),
}

impl Target {
    pub(super) fn of(options: &RedisOptions) -> Result<Self, ConnectError> {
        let bad_url = |number, source| ConnectError::BadUrl { number, source };
        let nodes = parse(&options.urls, bad_url)?;
        let sentinels = parse(&options.sentinels, |number, source| ConnectError::BadSentinelUrl { number, source })?;
        let identity = options.access.identity(&nodes)?;
        let sentinel_identity = options.access.sentinel_identity(&sentinels)?;
        if options.access.names_certificates() && !nodes.iter().chain(&sentinels).any(is_tls) {
            return Err(ConnectError::Misfit(
                "--redis-ca, --redis-cert and --redis-key are for TLS: write the URLs as rediss://host:port",
            ));
        }
        if !sentinels.is_empty() {
            let watched = watched(nodes, sentinels, (identity, sentinel_identity));
            return watched.map(|watched| Self::Sentinels(Box::new(watched)));
        }
        match <[ConnectionInfo; 1]>::try_from(nodes) {
            Ok([node]) => Ok(Self::Node(Box::new(node), identity)),
            Err(nodes) if nodes.is_empty() => Err(ConnectError::NoUrl),
            Err(nodes) if nodes.iter().any(|node| is_unix(node) || node.redis_settings().db() != 0) => {
                Err(ConnectError::Misfit("the nodes of a cluster are named as redis://host:port, without a database"))
            }
            Err(nodes) => Ok(Self::Cluster(nodes, identity)),
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

fn watched(
    nodes: Vec<ConnectionInfo>,
    sentinels: Vec<ConnectionInfo>,
    identities: (Identity, Identity),
) -> Result<Watched, ConnectError> {
    let Ok([master]) = <[ConnectionInfo; 1]>::try_from(nodes) else {
        return Err(ConnectError::Misfit(
            "with --redis-sentinel there is one --redis-url, whose host is the name of the master, such as redis://mymaster",
        ));
    };
    let name = match master.addr() {
        ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => name.clone(),
        _ => {
            return Err(ConnectError::Misfit(
                "with --redis-sentinel the host of --redis-url is the name of the master, such as redis://mymaster",
            ));
        }
    };
    if master.redis_settings().db() != 0 {
        return Err(ConnectError::Misfit("with --redis-sentinel the database is number 0"));
    }
    if sentinels.iter().any(is_unix) {
        return Err(ConnectError::Misfit("a Sentinel is named as redis://host:26379 or rediss://host:26379"));
    }
    Ok(Watched { name, master, sentinels, identities })
}

fn is_unix(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::Unix(_))
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
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

    fn target(urls: &[&str], sentinels: &[&str]) -> Result<Target, ConnectError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Target::of(&RedisOptions { urls: owned(urls), sentinels: owned(sentinels), ..RedisOptions::default() })
    }

    fn refusal(urls: &[&str], sentinels: &[&str]) -> String {
        target(urls, sentinels).err().expect("it is refused").to_string()
    }

    #[test]
    fn one_url_is_a_node_and_several_are_a_cluster() {
        assert!(
            matches!(target(&["redis://a:1/3"], &[]), Ok(Target::Node(node, _)) if node.redis_settings().db() == 3)
        );
        assert!(matches!(target(&["unix:///a"], &[]), Ok(Target::Node(..))));
        assert!(
            matches!(target(&["redis://a:1", "redis://b"], &[]), Ok(Target::Cluster(nodes, _)) if nodes.len() == 2)
        );
        assert!(refusal(&["redis://a:1", "unix:///b"], &[]).contains("nodes of a cluster"));
        assert!(refusal(&["redis://a:1", "redis://b/2"], &[]).contains("without a database"));
        assert!(refusal(&[], &[]).contains("no Redis URL"));
    }

    #[test]
    fn with_sentinels_the_host_is_the_name_and_each_url_has_its_own_credentials_and_tls() {
        let urls = ["rediss://tollgate:data@My_master-1.eu"];
        let sentinels = ["redis://:watch@s1:26379", "rediss://s2"];
        let Ok(Target::Sentinels(watched)) = target(&urls, &sentinels) else { panic!("it is watched") };
        assert_eq!(watched.name, "My_master-1.eu", "names keep their case");
        let found = at(&watched.master, "10.0.0.7", 6380);
        assert!(
            matches!(found.addr(), ConnectionAddr::TcpTls { host, port: 6380, insecure: false, .. } if host == "10.0.0.7")
        );
        assert_eq!(found.redis_settings().username(), Some("tollgate"));
        assert_eq!(found.redis_settings().password(), Some("data"));
        let sentinels = watched.sentinels;
        assert!(matches!(sentinels[0].addr(), ConnectionAddr::Tcp(host, 26379) if host == "s1"));
        assert_eq!(sentinels[0].redis_settings().password(), Some("watch"));
        assert!(matches!(sentinels[1].addr(), ConnectionAddr::TcpTls { host, .. } if host == "s2"));
        assert_eq!(sentinels[1].redis_settings().password(), None);
    }

    #[test]
    fn what_does_not_fit_sentinels_is_told_without_passwords() {
        let sentinels = ["redis://s1:26379"];
        assert!(refusal(&[], &sentinels).contains("such as redis://mymaster"));
        assert!(refusal(&["redis://a", "redis://b"], &sentinels).contains("one --redis-url"));
        assert!(refusal(&["unix:///a"], &sentinels).contains("name of the master"));
        assert!(refusal(&["redis://mymaster/1"], &sentinels).contains("number 0"));
        assert!(refusal(&["redis://mymaster"], &["unix:///s"]).contains("redis://host:26379"));
        let told = refusal(&["redis://mymaster"], &["redis://s1", "http://:secret@s2"]);
        assert!(told.contains("--redis-sentinel number 2") && !told.contains("secret"), "{told}");
        let told = refusal(&["http://:secret@mymaster"], &sentinels);
        assert!(told.contains("number 1") && !told.contains("secret"), "{told}");
    }
}
