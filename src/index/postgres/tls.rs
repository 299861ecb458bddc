//! TLS to Postgres with libpq's `sslmode` semantics, on rustls.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_name, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::{RootCert, Spec, SslMode};
use super::v1::V1;
use crate::error::{Error, ErrorKind, Result};
use crate::tls;

/// The connector for every connection of a URL. Reads the certificate files once.
pub(super) fn connector(spec: &Spec) -> Result<MakeRustlsConnect> {
    let provider = tls::provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(ErrorKind::Internal, format!("TLS set-up: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(spec, provider.clone())?));
    let mut config = match &spec.ssl_client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = read_certificates("sslcert", cert)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| bad_file("sslkey", key, &e.to_string()))?;
            let pair = pair(chain, key, &provider).map_err(|e| {
                Error::new(
                    ErrorKind::Config,
                    format!("postgresURL: sslcert and sslkey do not work together: {e}"),
                )
            })?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
    };
    config.enable_sni = spec.ssl_sni;
    Ok(MakeRustlsConnect::new(config))
}

/// The client's certificate with its key, if the two belong together.
fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> std::result::Result<CertifiedKey, rustls::Error> {
    let Some(v1) = chain.first().and_then(V1::read) else {
        return CertifiedKey::from_der(chain, key, provider);
    };
    let key = provider.key_provider.load_private_key(key)?;
    if key.public_key().is_some_and(|k| Some(k) != v1.public_key()) {
        return Err(rustls::InconsistentKeys::KeyMismatch.into());
    }
    Ok(CertifiedKey::new(chain, key))
}

fn read_certificates(param: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| bad_file(param, path, &e.to_string()))?;
    if certs.is_empty() {
        return Err(bad_file(param, path, "holds no PEM certificate"));
    }
    Ok(certs)
}

fn bad_file(param: &str, path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("postgresURL: {param} {}: {why}", path.display()),
    )
}

/// The checks of the server's certificate.
#[derive(Debug)]
enum Check {
    /// None: the connection is encrypted, the server unverified (`allow`, `prefer`, `require`).
    Nothing,
    /// The chain (`verify-ca`), and the host name if set (`verify-full`).
    Chain {
        webpki: Arc<WebPkiServerVerifier>,
        /// Certificates of `sslrootcert`. A server may present one of them itself (the usual
        /// self-signed set-up), which OpenSSL accepts and webpki does not.
        pinned: Vec<CertificateDer<'static>>,
        host: bool,
    },
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(spec: &Spec, provider: Arc<CryptoProvider>) -> Result<Verifier> {
        let host = match spec.ssl_mode {
            SslMode::VerifyFull => true,
            SslMode::VerifyCa => false,
            // As in libpq: `require` with a root certificate behaves as `verify-ca`.
            SslMode::Require if spec.ssl_root_cert.is_some() => false,
            _ => {
                return Ok(Verifier {
                    check: Check::Nothing,
                    provider,
                })
            }
        };
        // libpq's default file; if it does not exist, the system's roots rather than a refusal.
        let default = std::env::var_os("HOME")
            .map(|home| Path::new(&home).join(".postgresql/root.crt"))
            .filter(|path| path.is_file());
        let file = match &spec.ssl_root_cert {
            Some(RootCert::File(path)) => Some(path.clone()),
            Some(RootCert::System) => None,
            None => default,
        };
        let (roots, pinned) = match file {
            None => (tls::roots(), Vec::new()),
            Some(path) => {
                let certs = read_certificates("sslrootcert", &path)?;
                let mut store = RootCertStore::empty();
                let (added, _) = store.add_parsable_certificates(certs.iter().cloned());
                if added == 0 {
                    return Err(bad_file(
                        "sslrootcert",
                        &path,
                        "holds no usable certificate",
                    ));
                }
                (Arc::new(store), certs)
            }
        };
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| Error::new(ErrorKind::Config, format!("postgresURL: sslrootcert: {e}")))?;
        Ok(Verifier {
            check: Check::Chain {
                webpki,
                pinned,
                host,
            },
            provider,
        })
    }
}

impl Verifier {
    /// Whether the certificate cannot be read at all and the server is not verified anyway. An
    /// attacker in between could also present a certificate of their own, so a signature by this
    /// one would prove nothing.
    fn is_unreadable(&self, cert: &CertificateDer<'_>) -> bool {
        matches!(self.check, Check::Nothing) && ParsedCertificate::try_from(cert).is_err()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Check::Chain {
            webpki,
            pinned,
            host,
        } = &self.check
        else {
            return Ok(ServerCertVerified::assertion());
        };
        let v1 = V1::read(end_entity);
        if pinned.iter().any(|p| p == end_entity) || v1.is_some() {
            if let Some(v1) = &v1 {
                if !pinned.contains(end_entity) {
                    let algorithms = &self.provider.signature_verification_algorithms;
                    v1.check_issuer(pinned, now, algorithms)?;
                }
                if *host {
                    v1.check_name(server_name)?;
                }
            } else if *host {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            // The name is checked last: the chain was good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !host => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        if let Some(v1) = V1::read(cert) {
            return v1.check_tls12(
                message,
                dss,
                &self.provider.signature_verification_algorithms,
            );
        }
        if self.is_unreadable(cert) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        if let Some(v1) = V1::read(cert) {
            return v1.check_tls13(
                message,
                dss,
                &self.provider.signature_verification_algorithms,
            );
        }
        if self.is_unreadable(cert) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
