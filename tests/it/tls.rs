//! TLS and client certificates, through the real binary and with certificates that are made here.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd};
use tokio_stream::StreamExt as _;
use tollgate::config::Limits;
use tollgate::grpc::v1::plan_service_client::PlanServiceClient;
use tollgate::grpc::{ConnectionInfo, Incoming, v1};
use tollgate::tls::{Certificates, Files};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::served::{Served, tollgate};
use crate::support::{redis_url, spawn};

/// The name in the servers' certificates.
const NAME: &str = "tollgate.test";

/// A certificate and its key, as PEM.
struct Pair {
    cert: String,
    key: String,
}

/// Who signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, parameters: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair { cert: parameters.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    fn server(&self) -> Pair {
        self.sign(&CertificateParams::new(vec![NAME.to_owned()]).unwrap())
    }

    fn client(&self, uri: &str) -> Pair {
        self.sign(&client(uri))
    }
}

fn client(uri: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    parameters
}

/// Certificates on disk, mounted as Kubernetes does it: links to a link, which is swapped.
struct Mount {
    directory: tempfile::TempDir,
    round: u32,
}

impl Mount {
    fn new(pair: &Pair) -> Self {
        let mut mount = Self { directory: tempfile::tempdir().unwrap(), round: 0 };
        mount.swap(&pair.cert, &pair.key);
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), mount.path(name)).unwrap();
        }
        mount
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn swap(&mut self, cert: &str, key: &str) {
        self.round += 1;
        let version = format!("..{}", self.round);
        std::fs::create_dir(self.path(&version)).unwrap();
        std::fs::write(self.path(&version).join("tls.crt"), cert).unwrap();
        std::fs::write(self.path(&version).join("tls.key"), key).unwrap();
        std::os::unix::fs::symlink(&version, self.path("..data_tmp")).unwrap();
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }

    /// Writes a file beside them.
    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Serves with them.
    fn serve(&self, flags: &[&str]) -> Served {
        let (cert, key) = (self.path("tls.crt"), self.path("tls.key"));
        let mut all = vec!["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        let url = redis_url();
        all.extend(["--redis-url", &url]);
        all.extend(flags);
        Served::start(0, &all)
    }
}

/// A client that believes this authority.
fn trusting(authority: &Authority) -> ClientTlsConfig {
    choose_cryptography();
    ClientTlsConfig::new().domain_name(NAME).ca_certificate(Certificate::from_pem(authority.pem()))
}

fn choose_cryptography() {
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
}

fn with(tls: ClientTlsConfig, pair: &Pair) -> ClientTlsConfig {
    tls.identity(Identity::from_pem(&pair.cert, &pair.key))
}

async fn connect(address: SocketAddr, tls: &ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls.clone())?.connect().await
}

async fn list_plans(channel: &Channel) -> Result<(), String> {
    let answer = PlanServiceClient::new(channel.clone()).list_plans(v1::ListPlansRequest::default()).await;
    answer.map(drop).map_err(|status| format!("{status:?}"))
}

/// A connection of its own and a call on it. With TLS 1.3 a client learns only by the call that it was refused.
async fn call(address: SocketAddr, tls: &ClientTlsConfig) -> Result<(), String> {
    list_plans(&connect(address, tls).await.map_err(|error| format!("{error:?}"))?).await
}

/// Waits for what is to come.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_believes_the_authority_is_served_and_nobody_in_the_clear() {
    let (authority, other) = (Authority::new(), Authority::new());
    let served = Mount::new(&authority.server()).serve(&[]);
    call(served.address, &trusting(&authority)).await.unwrap();
    let told = call(served.address, &trusting(&other)).await.unwrap_err();
    assert!(told.contains("InvalidCertificate"), "{told}");
    let told = call(served.address, &trusting(&authority).domain_name("other.test")).await.unwrap_err();
    assert!(told.contains("NotValidForName"), "{told}");
    let plain = Endpoint::from_shared(format!("http://{}", served.address)).unwrap().connect().await;
    // The first bytes may be on their way before the refusal arrives.
    let refused = match plain {
        Err(_) => true,
        Ok(channel) => list_plans(&channel).await.is_err(),
    };
    assert!(refused, "a client without TLS is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_valid_certificate_is_refused_where_one_is_asked_for() {
    let (authority, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let mount = Mount::new(&authority.server());
    let ca = mount.write("clients.crt", &clients.pem());
    let served = mount.serve(&["--tls-client-ca", &ca, "--tls-client-app", "uri:spiffe://td/chat=chat"]);
    let trusting = trusting(&authority);
    call(served.address, &with(trusting.clone(), &clients.client("spiffe://td/chat"))).await.unwrap();
    let mut expired = client("spiffe://td/chat");
    (expired.not_before, expired.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    let mut early = client("spiffe://td/chat");
    early.not_before = date_time_ymd(2999, 1, 1);
    for (what, tls) in [
        ("none", trusting.clone()),
        ("of another authority", with(trusting.clone(), &other.client("spiffe://td/chat"))),
        ("of the server's authority", with(trusting.clone(), &authority.client("spiffe://td/chat"))),
        ("expired", with(trusting.clone(), &clients.sign(&expired))),
        ("not yet valid", with(trusting.clone(), &clients.sign(&early))),
    ] {
        let told = call(served.address, &tls).await.unwrap_err();
        assert!(
            !told.contains("PermissionDenied"),
            "refused before any call, with a certificate that is {what}: {told}"
        );
    }
    let told = call(served.address, &with(trusting, &clients.client("spiffe://td/other"))).await.unwrap_err();
    assert!(told.contains("PermissionDenied") && told.contains("names no app"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_carries_the_names_in_the_client_certificate() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let mount = Mount::new(&authority.server());
    let client_ca = Some(mount.write("clients.crt", &clients.pem()).into());
    let files = Files { cert: mount.path("tls.crt"), key: mount.path("tls.key"), client_ca };
    let certificates = Certificates::load(files).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_serving, stopping) = tokio::sync::watch::channel(());
    let incoming = Incoming::new(listener, Some(certificates.subscribe()), &Limits::default(), stopping);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let look = move |request: tonic::Request<()>| {
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        tell.send(info).unwrap();
        Err::<tonic::Request<()>, _>(tonic::Status::aborted("seen"))
    };
    let (_, health) = tonic_health::server::health_reporter();
    let service = tonic::service::interceptor::InterceptedService::new(health, look);
    spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let channel = connect(address, &with(trusting(&authority), &clients.client("spiffe://td/Chat"))).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    for _ in 0..2 {
        health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
        let info = told.recv().await.unwrap().unwrap();
        assert_eq!(info.identity.unwrap().names(), ["uri:spiffe://td/Chat"]);
        assert_eq!(info.tcp.remote_addr().unwrap().ip().to_string(), "127.0.0.1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_mount_is_followed_and_a_bad_pair_is_refused() {
    let [first, second, third] = [Authority::new(), Authority::new(), Authority::new()];
    let mut mount = Mount::new(&first.server());
    let served = mount.serve(&[]);
    let old = connect(served.address, &trusting(&first)).await.unwrap();
    list_plans(&old).await.unwrap();

    let pair = second.server();
    mount.swap(&pair.cert, &pair.key);
    let tls = trusting(&second);
    until("the second pair is in force", async || call(served.address, &tls).await.is_ok()).await;
    assert!(call(served.address, &trusting(&first)).await.is_err(), "the first is in force no more");
    list_plans(&old).await.expect("a connection lives on");

    // The certificate of one pair, and the key of another.
    mount.swap(&third.server().cert, &third.server().key);
    until("the refusal is logged", async || served.log().contains("refused the changed TLS files")).await;
    call(served.address, &trusting(&second)).await.expect("the former pair stays in force");
    let told = served.log();
    assert!(told.contains("does not belong to the first certificate of tls-cert"), "{told}");
    assert!(told.contains(mount.path("tls.key").to_str().unwrap()), "{told}");

    std::fs::remove_file(mount.path("..data")).unwrap();
    until("the files that are gone are told of", async || served.log().contains("cannot read tls-cert")).await;
    call(served.address, &trusting(&second)).await.expect("the former pair stays in force");

    let pair = third.server();
    mount.swap(&pair.cert, &pair.key);
    let tls = trusting(&third);
    until("the third pair is in force", async || call(served.address, &tls).await.is_ok()).await;
    list_plans(&old).await.expect("a connection lives on");
    assert_eq!(
        served.log().matches("refused the changed TLS files").count(),
        2,
        "each change is told of once: {}",
        served.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_keep_nobody_out_and_are_closed() {
    let authority = Authority::new();
    let served = Mount::new(&authority.server()).serve(&[]);
    // More than may be under way.
    let address = served.address;
    let slow: Vec<_> = (0..600).map(|_| TcpStream::connect(address).unwrap()).collect();
    for _ in 0..3 {
        call(address, &trusting(&authority)).await.unwrap();
    }
    tokio::task::spawn_blocking(move || {
        for mut connection in slow {
            connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            match connection.read(&mut [0]) {
                Ok(read) => assert_eq!(read, 0, "it is closed without a word"),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
            }
        }
    })
    .await
    .unwrap();
    call(address, &trusting(&authority)).await.unwrap();
}

#[tokio::test]
async fn connections_in_the_clear_carry_no_identity() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_serving, stopping) = tokio::sync::watch::channel(());
    let mut incoming = Incoming::new(listener, None, &Limits::default(), stopping);
    let _client = tokio::net::TcpStream::connect(address).await.unwrap();
    let Ok(connection) = incoming.next().await.unwrap();
    let info = tonic::transport::server::Connected::connect_info(&connection);
    assert!(info.identity.is_none());
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), told)
}

#[test]
fn settings_of_tls_that_are_half_of_something_are_refused() {
    for (flags, problem) in [
        (&["--tls-cert=a"][..], "tls-cert needs tls-key"),
        (&["--tls-key=a"], "tls-key needs tls-cert"),
        (&["--tls-client-ca=a"], "tls-client-ca needs tls-cert and tls-key"),
        (&["--tls-cert=a", "--tls-key=b", "--tls-client-app=dns:a=a"], "tls-client-app needs tls-client-ca"),
        (&["--tls-client-app=dns:a=a,dns:A=b"], "tls-client-app gives dns:a to two apps"),
        (&["--tls-client-app=ip:a=a"], "(flag --tls-client-app): write IDENTITY=APP"),
    ] {
        let (code, told) = run(tollgate().arg("config").args(flags));
        assert!(code == Some(2) && told.contains(problem), "{flags:?}: {told}");
    }
    let flags = ["--tls-cert=a", "--tls-key=b", "--tls-client-ca=c", "--tls-client-app=dns:A=a,cn:b=c"];
    let (code, told) = run(tollgate().arg("config").args(flags));
    assert!(
        code == Some(0) && told.contains(r#"tls-client-app = ["dns:A=a", "cn:b=c"]  # flag --tls-client-app"#),
        "{told}"
    );
}

#[test]
fn what_is_wrong_with_which_file_is_told_before_anything_starts() {
    let authority = Authority::new();
    let (pair, other) = (authority.server(), authority.server());
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (write("cert", &pair.cert), write("key", &pair.key));
    let (empty, odd) =
        (write("empty", ""), write("odd", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    let broken = write("broken", "-----BEGIN PRIVATE KEY-----\n!hush!\n-----END PRIVATE KEY-----\n");
    let locked = write("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let mismatched = write("mismatched", &other.key);
    let none = "/nonexistent/file".to_owned();
    let folder = directory.path().to_str().unwrap().to_owned();
    for (cert, key, ca, problems) in [
        (
            &none,
            &none,
            &none,
            vec!["tls-cert /nonexistent/file: No", "tls-key /nonexistent/file: No", "tls-client-ca /nonex"],
        ),
        (&empty, &empty, &empty, vec!["empty has no certificate", "empty has no key", "tls-client-ca"]),
        (&folder, &folder, &cert, vec!["it is not a file"]),
        (&odd, &broken, &odd, vec!["odd cannot be read", "broken is not PEM", "certificate 1 of tls-client-ca"]),
        (&cert, &locked, &cert, vec!["locked is encrypted"]),
        (&cert, &mismatched, &cert, vec!["mismatched does not belong to the first certificate of tls-cert"]),
        (&key, &key, &cert, vec!["key has no certificate"]),
        (&cert, &cert, &cert, vec!["cert has no key"]),
    ] {
        let (code, told) = run(tollgate()
            .args(["serve", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca])
            .args(["--data-dir", directory.path().join("data").to_str().unwrap()]));
        assert_eq!(code, Some(1), "{told}");
        for problem in problems {
            assert!(told.contains(problem), "{problem}: {told}");
        }
        assert!(!told.contains("hush") && !told.contains("PRIVATE KEY-----"), "{told}");
    }
    assert!(!directory.path().join("data").exists(), "no Redis was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_served_with_a_warning_that_names_its_date() {
    let authority = Authority::new();
    let mut parameters = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    (parameters.not_before, parameters.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    let served = Mount::new(&authority.sign(&parameters)).serve(&[]);
    let told = served.log();
    assert!(told.contains("WARN") && told.contains("expired at 2020-01-01T00:00:00Z"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_can_be_asked_with_tls() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let mount = Mount::new(&authority.server());
    let (ca, clients_ca) = (mount.write("ca.crt", &authority.pem()), mount.write("clients.crt", &clients.pem()));
    let served = mount.serve(&["--tls-client-ca", &clients_ca]);
    let pair = clients.client("spiffe://td/probe");
    let (cert, key) = (mount.write("probe.crt", &pair.cert), mount.write("probe.key", &pair.key));
    let url = format!("https://{}", served.address);
    let ask = |flags: &[&str]| run(tollgate().args(["health", &url]).args(flags));
    let all = ["--tls-ca", &ca, "--tls-server-name", NAME, "--tls-client-cert", &cert, "--tls-client-key", &key];
    assert_eq!(ask(&all), (Some(0), String::new()));
    assert_ne!(ask(&all[..4]).0, Some(0), "without a client certificate");
    assert_ne!(ask(&[&all[..2], &all[4..]].concat()).0, Some(0), "the certificate is of another name");
    let (code, told) = ask(&[]);
    assert!(code == Some(1) && told.contains("https:// needs --tls-ca FILE"), "{told}");
    assert_eq!(ask(&["--tls-ca", &ca, "--tls-client-cert", &cert]).0, Some(2), "half of a pair");
    let (code, told) = run(tollgate().args(["health", &format!("http://{}", served.address), "--tls-ca", &ca]));
    assert!(code == Some(1) && told.contains("--tls-ca needs an https:// URL"), "{told}");
}
