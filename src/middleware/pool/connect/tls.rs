mod error;
mod io;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::client::WantsClientCert;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use tower_service::Service;

use super::socket::{Tcp, bare_host, tcp};
use crate::base::error::BoxError;
use crate::base::phases::Phase;

pub use error::{TlsError, TlsErrorKind};
pub use io::TlsIo;
/// The rustls whose configurations [`TlsConnector`] takes.
pub use tokio_rustls::rustls;

/// Speaks TLS to `https` hosts over the connections of another connector, and leaves `http` alone.
///
/// It marks [`Phase::Tls`]; see [the module](crate::pool::connect). Clones share their sessions, so that later
/// connections to a host resume the first one's. rustls does it, with ring: the process' default provider is neither
/// asked nor set.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::pool::connect::{self, Alpn, TlsConnector, client_config};
///
/// // Trusts Mozilla's roots; HTTP/2 where the server can, else HTTP/1.
/// let usual = connect::https();
///
/// // A company's own roots, HTTP/1 only, less patience.
/// let mut roots = connect::rustls::RootCertStore::empty();
/// # let own: Vec<connect::rustls::pki_types::CertificateDer<'static>> = Vec::new();
/// roots.add_parsable_certificates(own);
/// let inside = TlsConnector::new(connect::tcp())
///     .roots(roots)
///     .alpn(Alpn::Http1)
///     .handshake_timeout(Duration::from_secs(3));
///
/// // Anything else, such as a client's certificate, is rustls' own business.
/// # let roots = connect::rustls::RootCertStore::empty();
/// let config = client_config().with_root_certificates(roots).with_no_client_auth();
/// let custom = TlsConnector::new(connect::tcp()).config(config);
/// # let _ = (usual, inside, custom);
/// ```
#[derive(Clone)]
pub struct TlsConnector<C> {
    inner: C,
    config: Arc<ClientConfig>,
    alpn: Option<Alpn>,
    timeout: Duration,
}

/// What [`https`] makes.
pub type Https = TlsConnector<Tcp>;

/// The protocols offered to servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alpn {
    /// HTTP/2, else HTTP/1.
    Any,
    /// HTTP/1.
    Http1,
    /// HTTP/2. A server that does not choose it is an error.
    Http2,
}

/// The future of a [`TlsConnector`].
#[must_use = "futures do nothing unless polled"]
pub struct TlsConnecting<IO>(Pin<Box<dyn Future<Output = Result<TlsIo<IO>, BoxError>> + Send>>);

/// [`tcp`] with TLS: `http` and `https`.
pub fn https() -> Https {
    TlsConnector::new(tcp())
}

/// Starts a configuration as [`TlsConnector`] makes its own: with ring and the versions rustls thinks safe.
pub fn client_config() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .expect("ring's cipher suites are those of the default versions")
}

fn trusting(roots: RootCertStore) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    client_config().with_root_certificates(roots)
}

// ===== impl TlsConnector =====

impl<C> TlsConnector<C> {
    /// TLS over the connections of `inner`, which has to connect for `https` too.
    pub fn new(inner: C) -> Self {
        let roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        Self {
            inner,
            config: Arc::new(trusting(roots).with_no_client_auth()),
            alpn: None,
            timeout: Duration::from_secs(10),
        }
        .offered()
    }

    /// Mozilla's roots, as of this build (default), or whom else to trust.
    #[must_use]
    pub fn roots(mut self, roots: RootCertStore) -> Self {
        self.config = Arc::new(trusting(roots).with_no_client_auth());
        self.offered()
    }

    /// A configuration of your own, in place of all that [`roots`](Self::roots) does. The protocols it offers stay,
    /// unless it offers none or [`alpn`](Self::alpn) says otherwise.
    #[must_use]
    pub fn config(mut self, config: ClientConfig) -> Self {
        self.config = Arc::new(config);
        self.offered()
    }

    /// [`Alpn::Any`] (default), or which protocols to offer.
    #[must_use]
    pub fn alpn(mut self, alpn: Alpn) -> Self {
        self.alpn = Some(alpn);
        self.offered()
    }

    /// 10 s (default) is how long a handshake may take.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The wrapped connector.
    pub fn get_ref(&self) -> &C {
        &self.inner
    }

    /// Puts the protocols into the configuration.
    fn offered(mut self) -> Self {
        let own = !self.config.alpn_protocols.is_empty();
        let alpn = match self.alpn {
            Some(alpn) => alpn,
            None if own => return self,
            None => Alpn::Any,
        };
        Arc::make_mut(&mut self.config).alpn_protocols = alpn.offered();
        self
    }
}

impl<C: fmt::Debug> fmt::Debug for TlsConnector<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector")
            .field("inner", &self.inner)
            .field("alpn", &self.alpn)
            .field("handshake_timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl<C> Service<Uri> for TlsConnector<C>
where
    C: Service<Uri>,
    C::Response: Read + Write + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = TlsIo<C::Response>;
    type Error = BoxError;
    type Future = TlsConnecting<C::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let host = bare_host(&to).to_owned();
        let name = match to.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => match ServerName::try_from(&*host) {
                Ok(name) => Some(name.to_owned()),
                Err(error) => return TlsConnecting::failed(TlsError::name(host, error)),
            },
            Some(scheme) if *scheme == Scheme::HTTP => None,
            _ => return TlsConnecting::failed(TlsError::scheme(host)),
        };
        let connecting = self.inner.call(to);
        let (config, timeout) = (self.config.clone(), self.timeout);
        let only_h2 = self.alpn == Some(Alpn::Http2);
        TlsConnecting(Box::pin(async move {
            let io = connecting.await.map_err(Into::into)?;
            let Some(name) = name else {
                return Ok(TlsIo::plain(io));
            };
            let handshake = async {
                let connect = tokio_rustls::TlsConnector::from(config);
                let shaking = connect.connect(name, TokioIo::new(io));
                match tokio::time::timeout(timeout, shaking).await {
                    Err(_) => Err(TlsError::timeout(host, timeout)),
                    Ok(Err(error)) => Err(TlsError::handshake(host, error)),
                    Ok(Ok(stream)) => {
                        let io = TlsIo::tls(stream);
                        if only_h2 && !io.is_h2() {
                            return Err(TlsError::protocol(host));
                        }
                        Ok(io)
                    }
                }
            };
            Ok(Phase::Tls.mark(handshake).await?)
        }))
    }
}

// ===== impl Alpn =====

impl Alpn {
    fn offered(self) -> Vec<Vec<u8>> {
        let (h2, h1) = (b"h2".to_vec(), b"http/1.1".to_vec());
        match self {
            Self::Any => vec![h2, h1],
            Self::Http1 => vec![h1],
            Self::Http2 => vec![h2],
        }
    }
}

// ===== impl TlsConnecting =====

impl<IO: Send + 'static> TlsConnecting<IO> {
    fn failed(error: TlsError) -> Self {
        Self(Box::pin(std::future::ready(Err(error.into()))))
    }
}

impl<IO> Future for TlsConnecting<IO> {
    type Output = Result<TlsIo<IO>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<IO> fmt::Debug for TlsConnecting<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnecting").finish_non_exhaustive()
    }
}
