//! A certificate authority for tests, and TLS servers that are certified by it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower_flow::pool::connect::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower_flow::pool::connect::rustls::server::WebPkiClientVerifier;
use tower_flow::pool::connect::rustls::{RootCertStore, ServerConfig, crypto};

/// An authority nobody but its own tests trusts.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cert: CertificateDer<'static>,
}

/// A certificate and its key.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two of one name would be taken for each other until a signature is checked.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tests {}", NEXT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            cert,
        }
    }

    /// What to trust it by.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.clone()).unwrap();
        roots
    }

    /// Its certificate.
    pub fn der(&self) -> &[u8] {
        &self.cert
    }

    /// Certifies `names`, which may be addresses.
    pub fn certify<const N: usize>(&self, names: [&str; N]) -> Identity {
        self.certified(CertificateParams::new(names.map(str::to_owned)).unwrap())
    }

    /// The same, long ago.
    pub fn expired<const N: usize>(&self, names: [&str; N]) -> Identity {
        let mut params = CertificateParams::new(names.map(str::to_owned)).unwrap();
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.certified(params)
    }

    fn certified(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            chain: vec![cert.der().clone()],
            key: key.into(),
        }
    }
}

impl Identity {
    /// A server with this certificate that chooses among `alpn`; none of them says nothing of protocols.
    pub fn server<const N: usize>(self, alpn: [&str; N]) -> ServerConfig {
        self.configured(alpn, None)
    }

    /// A server that asks its clients for certificates by `ca`.
    pub fn mutual(self, ca: &Ca) -> ServerConfig {
        self.configured(["h2", "http/1.1"], Some(ca))
    }

    fn configured<const N: usize>(self, alpn: [&str; N], clients: Option<&Ca>) -> ServerConfig {
        let ring = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(ring.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(ca.roots());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, ring);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(self.chain, self.key).unwrap();
        config.alpn_protocols = alpn.map(|name| name.as_bytes().to_vec()).into();
        config
    }
}

/// A hyper server on `listener` that answers every request with its HTTP version, and with how its TLS handshake went.
pub fn serve(listener: TcpListener, config: ServerConfig) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Clients that think better of it are what the tests are about.
                let Ok(io) = acceptor.accept(socket).await else {
                    return;
                };
                let session = io.get_ref().1;
                let told = format!(
                    "{:?} certified={}",
                    session.handshake_kind().unwrap(),
                    session.peer_certificates().is_some()
                );
                let service = service_fn(move |req: Request<Incoming>| {
                    let answer = format!("{:?} {told}", req.version());
                    std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(
                        answer,
                    ))))
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(io), service)
                    .await;
            });
        }
    });
    address
}
