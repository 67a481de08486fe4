//! The server over TLS, with an authority of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agl_client::{Client, ClientOptions};
use agl_server::{Error, ServerOptions, Tls};
use agl_store::{MemoryStore, Store as _};
use agl_types::{ApiKey, EnqueueRolloutRequest, RolloutQuery};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::common::Server;

/// A certificate for this machine, its key, and the authority that vouches for it.
struct Papers {
    folder: TempDir,
}

impl Papers {
    fn issue() -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority.distinguished_name.push(DnType::CommonName, "an authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut certificate = CertificateParams::new(names).unwrap();
        certificate.use_authority_key_identifier_extension = true;
        let certificate = certificate.signed_by(&key, &authority).unwrap();

        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn serve(&self) -> Server {
        let options = ServerOptions {
            tls: Some(Tls::from_files(&self.path("cert.pem"), &self.path("key.pem")).unwrap()),
            key: Some(ApiKey::new("s3cret").unwrap()),
            drain: Duration::from_secs(600),
            ..ServerOptions::default()
        };
        Server::over(Arc::new(MemoryStore::new()), options).await
    }
}

fn client(address: &str, ca_file: Option<PathBuf>) -> Client {
    let key = Some(ApiKey::new("s3cret").unwrap());
    Client::new(address, ClientOptions { key, ca_file, ..ClientOptions::default() }).unwrap()
}

#[tokio::test]
async fn a_client_that_trusts_the_authority_is_served() {
    let papers = Papers::issue();
    let server = papers.serve().await;
    for host in ["127.0.0.1", "localhost"] {
        let address = format!("https://{host}:{}", server.address.port());
        let client = client(&address, Some(papers.path("ca.pem")));
        client.enqueue_rollout(EnqueueRolloutRequest::new("a task")).await.unwrap();
        assert_eq!(client.otlp_traces_endpoint().unwrap(), format!("{address}/v1/traces"));
    }
    let address = format!("https://{}", server.address);
    let client = client(&address, Some(papers.path("ca.pem")));
    assert_eq!(client.query_rollouts(RolloutQuery::default()).await.unwrap().total, 2);
    // Connections that are kept are told to close; one that never said anything is no reason to wait either.
    let silent = TcpStream::connect(server.address).await.unwrap();
    server.stop().await;
    drop(silent);
}

/// The reason is told at once: trying again would not help.
#[tokio::test]
async fn a_client_that_does_not_is_told_why() {
    let papers = Papers::issue();
    let server = papers.serve().await;
    let address = format!("https://{}", server.address);
    let strangers = Papers::issue();
    let begin = Instant::now();
    let refused = client(&address, Some(strangers.path("ca.pem"))).health().await.unwrap_err();
    assert!(matches!(refused, agl_store::Error::Invalid { .. }), "{refused:?}");
    assert!(refused.to_string().contains("AGL_CA_FILE"), "{refused}");

    let plain = Server::start().await;
    let wrong_scheme = client(&format!("https://{}", plain.address), Some(papers.path("ca.pem")));
    let refused = wrong_scheme.health().await.unwrap_err();
    assert!(refused.to_string().contains("plain http"), "{refused}");
    assert!(begin.elapsed() < ClientOptions::default().max_outage, "without the patience for an outage");

    // A file without a certificate in it.
    let options = ClientOptions { ca_file: Some(papers.path("key.pem")), ..ClientOptions::default() };
    let refused = Client::new(&address, options).unwrap_err();
    assert!(refused.to_string().contains("key.pem"), "{refused}");
}

/// Somebody who speaks plain HTTP, or nothing, does no harm.
#[tokio::test]
async fn those_who_speak_no_tls_are_hung_up_on() {
    let papers = Papers::issue();
    let server = papers.serve().await;
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /v1/agl/health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answered = Vec::new();
    // A reset is an end too.
    let _ = plain.read_to_end(&mut answered).await;
    assert!(!answered.starts_with(b"HTTP"), "{answered:?}");
    let client = client(&format!("https://{}", server.address), Some(papers.path("ca.pem")));
    client.health().await.unwrap();
}

/// A client of another kind: Python's own.
#[tokio::test(flavor = "multi_thread")]
async fn python_is_served() {
    let papers = Papers::issue();
    let server = papers.serve().await;
    let script = "
import json, ssl, sys, urllib.request
address, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
request = urllib.request.Request(address + '/v1/agl/rollouts', headers={'x-api-key': 's3cret'})
with urllib.request.urlopen(request, context=context) as answer:
    print(answer.status, json.load(answer)['total'])
";
    let address = format!("https://localhost:{}", server.address.port());
    let python =
        Command::new("python3").args(["-c", script, &address]).arg(papers.path("ca.pem")).output().unwrap();
    let said = String::from_utf8_lossy(&python.stdout).into_owned();
    assert_eq!(said.trim(), "200 0", "{}", String::from_utf8_lossy(&python.stderr));
}

#[test]
fn files_that_are_no_papers_are_named() {
    let (papers, others) = (Papers::issue(), Papers::issue());
    let refused = |certificate: &Path, key: &Path| match Tls::from_files(certificate, key).unwrap_err() {
        Error::Certificate { path, problem } => (path, problem),
        other => unreachable!("{other:?}"),
    };
    let (cert, key) = (papers.path("cert.pem"), papers.path("key.pem"));
    let missing = papers.path("missing.pem");
    assert_eq!(refused(&missing, &key).0, missing);
    assert_eq!(refused(&cert, &missing).0, missing);
    assert_eq!(refused(&key, &key).0, key, "no certificate in it");
    assert_eq!(refused(&cert, &cert).0, cert, "no key in it");
    let (path, problem) = refused(&cert, &others.path("key.pem"));
    assert_eq!(path, cert);
    assert!(problem.contains("does not go together"), "{problem}");
}
