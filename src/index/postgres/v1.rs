//! Server and client certificates of X.509 version 1, which rustls does not read.
//!
//! PostgreSQL's manual makes its server's certificate with `openssl x509 -req` and no extensions,
//! which gives version 1, and libpq accepts it. Such a certificate holds a public key, an issuer, a
//! time of validity and a common name, and all of them are checked as for other certificates. It
//! cannot hold alternative names, so `verify-full` compares the common name, as libpq does. Only an
//! authority of `sslrootcert` itself may have issued it, since a longer chain would need extensions
//! to be safe.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls13_signature_with_raw_key, WebPkiSupportedAlgorithms};
use rustls::pki_types::{
    CertificateDer, ServerName, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::{CertificateError, DigitallySignedStruct, PeerMisbehaved};
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::Certificate;

/// A certificate of version 1.
pub(super) struct V1 {
    parsed: Certificate,
    /// The part of the certificate that the issuer signed, as received.
    signed: Vec<u8>,
}

impl V1 {
    /// Reads a certificate; `None` for other versions, and for bytes that are no certificate.
    pub(super) fn read(cert: &CertificateDer<'_>) -> Option<V1> {
        let parsed = Certificate::from_der(cert).ok()?;
        if parsed.tbs_certificate.version != Version::V1 {
            return None;
        }
        let whole = AnyRef::from_der(cert).ok()?;
        let mut parts = SliceReader::new(whole.value()).ok()?;
        let signed = parts.tlv_bytes().ok()?.to_vec();
        Some(V1 { parsed, signed })
    }

    /// The public key with its algorithm.
    pub(super) fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'static>> {
        let info = &self.parsed.tbs_certificate.subject_public_key_info;
        info.to_der().ok().map(SubjectPublicKeyInfoDer::from)
    }

    /// Checks that one of `authorities` issued it and that it is valid `now`.
    pub(super) fn check_issuer(
        &self,
        authorities: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), rustls::Error> {
        let issued = authorities
            .iter()
            .filter_map(|cert| Certificate::from_der(cert).ok())
            .any(|issuer| self.is_issued_by(&issuer, algorithms));
        if !issued {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let validity = &self.parsed.tbs_certificate.validity;
        if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }
        Ok(())
    }

    fn is_issued_by(&self, issuer: &Certificate, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let issuer = &issuer.tbs_certificate;
        let key = &issuer.subject_public_key_info;
        let signature = self.parsed.signature.as_bytes();
        let (Some(key_bytes), Some(signature)) = (key.subject_public_key.as_bytes(), signature)
        else {
            return false;
        };
        let (Some(signed_with), Some(made_by)) = (
            contents(&self.parsed.signature_algorithm),
            contents(&key.algorithm),
        ) else {
            return false;
        };
        issuer.subject == self.parsed.tbs_certificate.issuer
            && is_authority(issuer)
            && self.parsed.signature_algorithm == self.parsed.tbs_certificate.signature
            && algorithms.all.iter().any(|algorithm| {
                *algorithm.signature_alg_id() == *signed_with
                    && *algorithm.public_key_alg_id() == *made_by
                    && algorithm
                        .verify_signature(key_bytes, &self.signed, signature)
                        .is_ok()
            })
    }

    /// Checks that the common name is that of the server.
    pub(super) fn check_name(&self, server: &ServerName<'_>) -> Result<(), rustls::Error> {
        let subject = &self.parsed.tbs_certificate.subject;
        let mut names = subject.0.iter().flat_map(|set| set.0.iter());
        let common = names.rfind(|name| name.oid == COMMON_NAME);
        let common = common.map(|name| String::from_utf8_lossy(name.value.value()));
        if common.is_some_and(|pattern| is_name(&pattern, &server.to_str())) {
            return Ok(());
        }
        Err(CertificateError::NotValidForName.into())
    }

    /// Checks the server's signature of a handshake of TLS 1.2.
    pub(super) fn check_tls12(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = &self.parsed.tbs_certificate.subject_public_key_info;
        let usable = algorithms
            .mapping
            .iter()
            .filter(|(scheme, _)| *scheme == dss.scheme)
            .flat_map(|(_, algorithms)| algorithms.iter());
        let (Some(bytes), Some(made_by)) =
            (key.subject_public_key.as_bytes(), contents(&key.algorithm))
        else {
            return Err(CertificateError::BadEncoding.into());
        };
        let mut usable = usable.filter(|algorithm| *algorithm.public_key_alg_id() == *made_by);
        let good = |algorithm: &&dyn SignatureVerificationAlgorithm| {
            algorithm
                .verify_signature(bytes, message, dss.signature())
                .is_ok()
        };
        match usable.next() {
            None => Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()),
            Some(first) if good(first) || usable.any(good) => {
                Ok(HandshakeSignatureValid::assertion())
            }
            Some(_) => Err(CertificateError::BadSignature.into()),
        }
    }

    /// Checks the server's signature of a handshake of TLS 1.3.
    pub(super) fn check_tls13(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = self.public_key().ok_or(CertificateError::BadEncoding)?;
        verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }
}

/// Whether a certificate may issue others, by OpenSSL's rules: `sslrootcert` may hold a server's
/// certificate, too.
fn is_authority(cert: &TbsCertificate) -> bool {
    let may_sign = match cert.get::<KeyUsage>() {
        Ok(usage) => usage.map(|(_, usage)| usage.key_cert_sign()),
        Err(_) => Some(false),
    };
    match cert.get::<BasicConstraints>() {
        Ok(Some((_, constraints))) => constraints.ca && may_sign != Some(false),
        // An authority of version 1 has neither extension.
        Ok(None) => may_sign.unwrap_or(cert.version == Version::V1),
        Err(_) => false,
    }
}

/// The contents of the sequence of an algorithm's identifier, without its header: rustls compares
/// algorithms in this form.
fn contents(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    Some(AnyRef::from_der(&der).ok()?.value().to_vec())
}

/// Whether a common name matches a host, compared as in libpq: letters of either case, and `*.` at
/// the beginning for one label.
fn is_name(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(suffix) = pattern.strip_prefix('*').filter(|s| s.starts_with('.')) else {
        return false;
    };
    host.split_once('.')
        .is_some_and(|(label, rest)| !label.is_empty() && suffix[1..].eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_are_compared_as_libpq_compares_them() {
        for (pattern, host) in [
            ("db.example", "db.example"),
            ("DB.example", "db.EXAMPLE"),
            ("*.example", "db.example"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert!(is_name(pattern, host), "{pattern} {host}");
        }
        for (pattern, host) in [
            ("db.example", "db.example.org"),
            ("*.example", "a.db.example"),
            ("*.example", "example"),
            ("*.example", ".example"),
            ("*", "db"),
            ("d*.example", "db.example"),
            ("", "db"),
        ] {
            assert!(!is_name(pattern, host), "{pattern} {host}");
        }
    }
}
