//! Certificates, its own and those it trusts.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};
use tower_flow::BoxError;

use crate::flags::Tls;

/// TLS 1.2 and 1.3, HTTP/2 or HTTP/1.1.
pub(crate) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, BoxError> {
    let (chain, key) = match tls {
        Tls::Files { cert, key } => (certificates(cert)?, private_key(key)?),
        Tls::SelfSigned => self_signed()?,
    };
    let ring = Arc::new(crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificates in a file, as those to trust.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(chain) if chain.is_empty() => {
            Err(format!("{} holds no certificate in PEM", path.display()).into())
        }
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, BoxError> {
    let key = PrivateKeyDer::from_pem_file(path);
    key.map_err(|error| format!("{}: {error}", path.display()).into())
}

fn self_signed() -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), BoxError> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    Ok((vec![made.cert.der().clone()], key))
}
