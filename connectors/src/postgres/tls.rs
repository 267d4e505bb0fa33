//! Encrypted connections: which are asked for, and whom they trust.
//!
//! Invariant: `verify-full` never speaks to a server whose certificate does not name the host and
//! lead to a trusted authority; the other modes say in their documentation what they leave open.

use super::config::{TlsConfig, TlsMode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A client for one connection to `host`.
///
/// # Errors
/// When the certificates can't be read or the host has no name that TLS knows.
pub(crate) fn client(
    config: &TlsConfig,
    folder: &Path,
    host: &str,
) -> Result<ClientConnection, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| format!("`{host}` is no name of a server: {error}"))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS can't be set up: {error}"))?;
    let client = if config.mode == TlsMode::VerifyFull {
        builder.with_root_certificates(roots(config.ca.as_deref(), folder)?)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    };
    ClientConnection::new(Arc::new(client.with_no_client_auth()), name)
        .map_err(|error| format!("TLS can't be set up: {error}"))
}

/// The authorities of the file, or those that browsers trust.
fn roots(ca: Option<&Path>, folder: &Path) -> Result<RootCertStore, String> {
    let Some(ca) = ca else {
        let known = webpki_roots::TLS_SERVER_ROOTS.iter().cloned();
        return Ok(known.collect());
    };
    let path: PathBuf = folder.join(ca);
    let unreadable = |error: &dyn std::fmt::Display| {
        format!("`tls.ca` {} can't be read: {error}", path.display())
    };
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&path).map_err(|error| unreadable(&error))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        store.add(certificate).map_err(|error| unreadable(&error))?;
    }
    if store.is_empty() {
        return Err(unreadable(&"it has no certificate"));
    }
    Ok(store)
}

/// Takes every certificate, as `require` does everywhere: what is sent can't be read on the way, but
/// who answers is not known. The handshake's signatures are checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
