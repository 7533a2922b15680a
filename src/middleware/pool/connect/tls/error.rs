use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio_rustls::rustls;

use crate::base::error::BoxError;

/// Why there is no TLS connection to a host. What the inner connector failed with is passed on as it is.
#[derive(Debug)]
pub struct TlsError {
    kind: TlsErrorKind,
    host: String,
    source: Option<BoxError>,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsErrorKind {
    /// The handshake did not end within this time.
    Timeout(Duration),
    /// The server's certificate is not one to trust for this host; the source is the `rustls::Error`.
    Certificate,
    /// Server and client have no protocol in common.
    Protocol,
    /// What answered does not speak TLS; the source is the `rustls::Error`.
    NotTls,
    /// The handshake failed in another way; the source is the `rustls::Error` or the [`io::Error`].
    Handshake,
    /// The host is no name that a certificate could be for.
    Name,
    /// The scheme is neither `http` nor `https`.
    Scheme,
}

impl TlsError {
    /// What went wrong.
    pub fn kind(&self) -> TlsErrorKind {
        self.kind
    }

    /// With which host.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn timeout(host: String, after: Duration) -> Self {
        Self::new(TlsErrorKind::Timeout(after), host, None)
    }

    pub(super) fn protocol(host: String) -> Self {
        Self::new(TlsErrorKind::Protocol, host, None)
    }

    pub(super) fn scheme(host: String) -> Self {
        Self::new(TlsErrorKind::Scheme, host, None)
    }

    pub(super) fn name(host: String, error: rustls::pki_types::InvalidDnsNameError) -> Self {
        Self::new(TlsErrorKind::Name, host, Some(error.into()))
    }

    pub(super) fn handshake(host: String, error: io::Error) -> Self {
        use rustls::{AlertDescription, Error as Tls};
        // The IO traits can only carry an error of IO; what is in it is what happened.
        match error.downcast::<Tls>() {
            Ok(error) => {
                let kind = match &error {
                    Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented => {
                        TlsErrorKind::Certificate
                    }
                    Tls::NoApplicationProtocol
                    | Tls::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                        TlsErrorKind::Protocol
                    }
                    Tls::InvalidMessage(_) => TlsErrorKind::NotTls,
                    _ => TlsErrorKind::Handshake,
                };
                Self::new(kind, host, Some(error.into()))
            }
            Err(error) => Self::new(TlsErrorKind::Handshake, host, Some(error.into())),
        }
    }

    fn new(kind: TlsErrorKind, host: String, source: Option<BoxError>) -> Self {
        Self { kind, host, source }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        match self.kind {
            TlsErrorKind::Timeout(after) => {
                write!(
                    f,
                    "{host} did not finish its TLS handshake within {after:?}"
                )
            }
            TlsErrorKind::Certificate => {
                write!(f, "the certificate of {host} is not to be trusted")
            }
            TlsErrorKind::Protocol => write!(
                f,
                "{host} speaks none of the HTTP versions offered; offer both with Alpn::Any"
            ),
            TlsErrorKind::NotTls => {
                write!(
                    f,
                    "{host} does not speak TLS on this port; try http or another port"
                )
            }
            TlsErrorKind::Handshake => write!(f, "the TLS handshake with {host} failed"),
            TlsErrorKind::Name => {
                write!(
                    f,
                    "{host:?} is no host name that a certificate could be for"
                )
            }
            TlsErrorKind::Scheme => {
                write!(
                    f,
                    "cannot connect to {host:?}: the scheme must be http or https"
                )
            }
        }
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
