//! TLS on the agents' side of the controller: a certificate that can change while connections stand, and handshakes that
//! cannot hold up each other. Listens on the socket it is given; reads files where somebody else renews the certificate.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use crate::authority::Leaf;

/// Longest handshake; who takes longer is cut off.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at one time: the most of them that wait for a peer, so that a flood of silent connections costs no memory
/// beyond these.
const AT_ONCE: usize = 512;
/// Pause after the system could not give us a connection, as when descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A file holds none.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Key and certificate do not fit, or the kind of key is not known.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The certificate in use. Without one, connections are refused.
#[derive(Debug, Default)]
pub struct Certificate(ArcSwapOption<CertifiedKey>);

impl Certificate {
    /// None yet.
    pub fn none() -> Arc<Self> {
        Arc::default()
    }

    /// From now on new connections get this one.
    pub fn set(&self, leaf: Leaf) -> Result<(), ServingError> {
        self.put(vec![leaf.certificate], leaf.key)
    }

    /// The same, from PEM files: the certificate with those between it and its authority, and the key.
    pub fn set_from(&self, certificate: &PathBuf, key: &PathBuf) -> Result<(), ServingError> {
        let wrong = |path: &PathBuf, reason: String| ServingError::File { path: path.clone(), reason };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|e| wrong(certificate, e.to_string()))?;
        if chain.is_empty() {
            return Err(wrong(certificate, "there is no certificate in it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e.to_string()))?;
        self.put(chain, key)
    }

    fn put(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), ServingError> {
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// TLS 1.3 and HTTP/2 with that certificate; clients prove themselves by tokens inside.
fn config(certificate: Arc<Certificate>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has cipher suites of TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connections that have shaken hands, for as long as the stream is held.
pub fn incoming(
    listener: TcpListener,
    certificate: Arc<Certificate>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let acceptor = TlsAcceptor::from(Arc::new(config(certificate)));
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(async move {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        while !ready.is_closed() {
            let turn = Arc::clone(&at_once).acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                () = ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _turn = turn;
                stream.set_nodelay(true).ok();
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => debug!(%remote, %error, "a handshake failed"),
                    Err(_) => debug!(%remote, "a handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use jiff::Timestamp;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::{SERVER_NAME, authority::Authority};

    /// The name that is asked for, and the authorities that are trusted.
    async fn dial(address: std::net::SocketAddr, name: &str, trusted: &str) -> io::Result<[u8; 2]> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        let name = name.to_owned().try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let mut greeting = [0; 2];
        stream.read_exact(&mut greeting).await?;
        Ok(greeting)
    }

    #[tokio::test]
    async fn certificates_change_under_standing_connections_and_silence_holds_up_nobody() {
        let certificate = Certificate::none();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = incoming(listener, Arc::clone(&certificate));
        tokio::spawn(async move {
            while let Some(connection) = connections.next().await {
                tokio::spawn(async move {
                    let mut connection = connection.unwrap();
                    connection.write_all(b"hi").await.unwrap();
                    connection.read_u8().await.ok();
                });
            }
        });
        let (old, new) =
            (Authority::new(Timestamp::now()).unwrap(), Authority::new(Timestamp::now()).unwrap());
        let names = [SERVER_NAME.to_owned(), "127.0.0.1".to_owned()];

        assert!(dial(address, SERVER_NAME, &old.bundle()).await.is_err(), "there is no certificate yet");
        certificate.set(old.issue(&names, Timestamp::now()).unwrap()).unwrap();
        let silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(&dial(address, SERVER_NAME, &old.bundle()).await.unwrap(), b"hi");
        assert_eq!(&dial(address, "127.0.0.1", &old.bundle()).await.unwrap(), b"hi");
        assert!(
            dial(address, "other.example", &old.bundle()).await.is_err(),
            "the certificate is not for it"
        );
        assert!(dial(address, SERVER_NAME, &new.bundle()).await.is_err(), "its authority is not trusted");

        certificate.set(new.issue(&names, Timestamp::now()).unwrap()).unwrap();
        assert!(dial(address, SERVER_NAME, &old.bundle()).await.is_err());
        let both = old.bundle() + &new.bundle();
        assert_eq!(&dial(address, SERVER_NAME, &both).await.unwrap(), b"hi");
        drop(silent);
    }

    #[test]
    fn files_that_hold_no_certificate_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (crt, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let certificate = Certificate::none();
        let error = certificate.set_from(&crt, &key).unwrap_err().to_string();
        assert!(error.contains("tls.crt"), "{error}");
        std::fs::write(&crt, Authority::new(Timestamp::now()).unwrap().bundle()).unwrap();
        std::fs::write(&key, Authority::new(Timestamp::now()).unwrap().keys()).unwrap();
        assert!(
            matches!(certificate.set_from(&crt, &key), Err(ServingError::Unusable(_))),
            "they do not fit"
        );
        assert!(!certificate.is_set());
    }
}
