//! The authority that signs the controller's certificates, and its rotation. Pure but for the making of keys.
//!
//! It is a list of generations. A new one is published before it signs, so that every agent trusts it when it meets its
//! first certificate; an old one stays published until it ends, so that no agent meets a certificate that it does not
//! trust. Nobody has to restart, and nobody has to be told.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

/// How long a generation is valid.
pub const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// The next one is made when less than this is left of the newest.
pub const RENEW: SignedDuration = SignedDuration::from_hours(120 * 24);
/// For so long a new generation is published without signing. The kubelet brings a changed ConfigMap to its pods within
/// about two minutes; agents that are away for a day find the old one still trusted.
pub const OVERLAP: SignedDuration = SignedDuration::from_hours(24);
/// How long a server's certificate is valid.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Clocks that go behind ours by less than this take what was just made.
pub const SKEW: SignedDuration = SignedDuration::from_hours(1);

/// Why there is no authority, or no certificate of it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// What was kept is no authority.
    #[error("{field}: {reason}")]
    Unreadable {
        /// Which part.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// All generations have ended.
    #[error("every certificate of the authority has ended")]
    Ended,
}

/// The authority.
pub struct Authority {
    /// Oldest first; never empty.
    generations: Vec<Generation>,
}

/// A certificate of the authority with its key.
struct Generation {
    certificate: String,
    key: KeyPair,
    from: Timestamp,
    until: Timestamp,
}

/// Never shows a key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spans = self.generations.iter().map(|g| (g.from, g.until));
        f.debug_list().entries(spans).finish()
    }
}

/// A server's certificate.
pub struct Leaf {
    /// The certificate alone: agents hold the authority's.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it should be replaced: when half of its life is over.
    pub renew: Timestamp,
}

impl Authority {
    /// One of a single generation, which signs at once.
    pub fn new(now: Timestamp) -> Result<Self, AuthorityError> {
        Ok(Self { generations: vec![Generation::new(now)?] })
    }

    /// From what [`Self::bundle`] and [`Self::keys`] gave.
    pub fn read(bundle: &[u8], keys: &[u8]) -> Result<Self, AuthorityError> {
        let blocks = |field, bytes: &[u8], tag: &str| {
            let blocks = pem::parse_many(bytes).map_err(|e| unreadable(field, &e))?;
            match blocks.iter().find(|block| block.tag() != tag) {
                Some(other) => Err(unreadable(field, &format!("{} where {tag} belongs", other.tag()))),
                None => Ok(blocks),
            }
        };
        let certificates = blocks("certificates", bundle, "CERTIFICATE")?;
        let keys = blocks("keys", keys, "PRIVATE KEY")?;
        if certificates.is_empty() || certificates.len() != keys.len() {
            let reason = format!("{} of them for {} certificates", keys.len(), certificates.len());
            return Err(unreadable("keys", &reason));
        }
        let generations =
            certificates.iter().zip(&keys).map(|(certificate, key)| Generation::read(certificate, key));
        Ok(Self { generations: generations.collect::<Result<_, _>>()? })
    }

    /// Certificates in PEM, oldest first: what agents trust.
    pub fn bundle(&self) -> String {
        self.generations.iter().map(|g| g.certificate.as_str()).collect()
    }

    /// Keys in PEM (PKCS #8), in the same order. Secret.
    pub fn keys(&self) -> String {
        self.generations.iter().map(|g| g.key.serialize_pem()).collect()
    }

    /// What it should be by now, if that is not what it is: without generations that have ended, and with a new one
    /// where the newest will end soon.
    pub fn rotated(self, now: Timestamp) -> Result<(Self, bool), AuthorityError> {
        let before = self.generations.len();
        let mut generations: Vec<Generation> =
            self.generations.into_iter().filter(|g| now < g.until).collect();
        let mut changed = generations.len() != before;
        if generations.last().is_none_or(|newest| now + RENEW >= newest.until) {
            generations.push(Generation::new(now)?);
            changed = true;
        }
        Ok((Self { generations }, changed))
    }

    /// When [`Self::rotated`] may have something to do next.
    pub fn next_due(&self) -> Timestamp {
        let ends = self.generations.iter().map(|g| g.until).min();
        let renewal = self.generations.last().map(|g| g.until - RENEW);
        ends.into_iter().chain(renewal).min().unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The newest generation that has been published for long enough; where there is none, the oldest.
    fn signer(&self, now: Timestamp) -> Result<&Generation, AuthorityError> {
        let valid = || self.generations.iter().filter(|g| now < g.until);
        let settled = valid().rfind(|g| g.from + SKEW + OVERLAP <= now);
        settled.or_else(|| valid().next()).ok_or(AuthorityError::Ended)
    }

    /// A certificate for a server of these names (DNS names or addresses).
    pub fn issue(&self, names: &[String], now: Timestamp) -> Result<Leaf, AuthorityError> {
        let signer = self.signer(now)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, crate::SERVER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let until = (now + LEAF_LIFE).min(signer.until);
        params.not_before = calendar(now - SKEW);
        params.not_after = calendar(until);
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&signer.certificate, &signer.key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Leaf {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            renew: now + until.duration_since(now) / 2,
        })
    }
}

impl Generation {
    fn new(now: Timestamp) -> Result<Self, AuthorityError> {
        let (from, until) = (now - SKEW, now + LIFE);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two generations of one name could be taken for each other.
        params.distinguished_name.push(DnType::CommonName, format!("calico-vni {}", now.as_second()));
        params.not_before = calendar(from);
        params.not_after = calendar(until);
        let key = KeyPair::generate()?;
        Ok(Self { certificate: params.self_signed(&key)?.pem(), key, from, until })
    }

    fn read(certificate: &pem::Pem, key: &pem::Pem) -> Result<Self, AuthorityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.contents())
            .map_err(|e| unreadable("certificates", &e))?;
        let time = |t: x509_parser::time::ASN1Time| {
            Timestamp::from_second(t.timestamp()).map_err(|e| unreadable("certificates", &e))
        };
        let (from, until) = (time(parsed.validity().not_before)?, time(parsed.validity().not_after)?);
        let key = KeyPair::from_pem(&pem::encode(key)).map_err(|e| unreadable("keys", &e))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(unreadable("keys", &"one does not belong to its certificate"));
        }
        Ok(Self { certificate: pem::encode_config(certificate, LINES), key, from, until })
    }
}

/// How certificates are written; the same as they are made, so that what did not change has equal bytes.
const LINES: pem::EncodeConfig = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);

fn unreadable(field: &'static str, reason: &dyn fmt::Display) -> AuthorityError {
    AuthorityError::Unreadable { field, reason: reason.to_string() }
}

/// Seconds are enough: X.509 keeps no more (RFC 5280 section 4.1.2.5).
fn calendar(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.as_second()).expect("a year of this or the next century")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_hours(hours)
    }

    fn signed_by(authority: &Authority, now: Timestamp) -> usize {
        let leaf = authority.issue(&["a.example".to_owned()], now).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf.certificate).unwrap();
        let signers = authority.generations.iter().enumerate().filter(|(_, generation)| {
            let block = pem::parse(&generation.certificate).unwrap();
            let (_, issuer) = x509_parser::parse_x509_certificate(block.contents()).unwrap();
            leaf.verify_signature(Some(issuer.public_key())).is_ok()
        });
        let found: Vec<usize> = signers.map(|(i, _)| i).collect();
        assert_eq!(found.len(), 1, "one generation signed it");
        found[0]
    }

    #[test]
    fn what_is_kept_is_read_back() {
        let authority = Authority::new(at(0)).unwrap();
        let (authority, changed) = authority.rotated(at(0) + LIFE - RENEW).unwrap();
        assert!(changed);
        let back = Authority::read(authority.bundle().as_bytes(), authority.keys().as_bytes()).unwrap();
        assert_eq!((back.bundle(), back.keys()), (authority.bundle(), authority.keys()));
        assert_eq!(format!("{back:?}"), format!("{authority:?}"));
        assert!(!format!("{back:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_is_no_authority_is_told() {
        let (one, two) = (Authority::new(at(0)).unwrap(), Authority::new(at(0)).unwrap());
        let read = |bundle: &str, keys: &str| {
            Authority::read(bundle.as_bytes(), keys.as_bytes()).unwrap_err().to_string()
        };
        assert!(read("", "").contains("0 of them for 0"));
        assert!(read(&one.bundle(), &two.keys()).contains("does not belong"));
        assert!(read(&one.keys(), &one.keys()).contains("PRIVATE KEY where CERTIFICATE belongs"));
        assert!(read(&(one.bundle() + &two.bundle()), &one.keys()).contains("1 of them for 2"));
    }

    #[test]
    fn a_new_generation_is_published_before_it_signs_and_an_old_one_after() {
        let (authority, changed) = Authority::new(at(0)).unwrap().rotated(at(1)).unwrap();
        assert!(!changed);
        assert_eq!(signed_by(&authority, at(1)), 0, "where there is only one, it signs at once");
        let renewal = authority.next_due();
        assert_eq!(renewal, at(0) + LIFE - RENEW);
        let (authority, changed) = authority.rotated(renewal).unwrap();
        assert!(changed && authority.generations.len() == 2);
        assert_eq!(signed_by(&authority, renewal), 0);
        assert_eq!(signed_by(&authority, renewal + OVERLAP), 1);
        let (authority, changed) = authority.rotated(renewal + OVERLAP).unwrap();
        assert!(!changed, "the old one stays as long as it is valid");
        assert_eq!(authority.next_due(), at(0) + LIFE);
        let (authority, changed) = authority.rotated(at(0) + LIFE).unwrap();
        assert!(changed && authority.generations.len() == 1);
        assert_eq!(signed_by(&authority, at(0) + LIFE), 0);
    }

    #[test]
    fn an_authority_that_slept_through_its_renewal_goes_on() {
        let late = at(0) + LIFE + LIFE;
        assert!(matches!(Authority::new(at(0)).unwrap().issue(&[], late), Err(AuthorityError::Ended)));
        let (authority, changed) = Authority::new(at(0)).unwrap().rotated(late).unwrap();
        assert!(changed && authority.generations.len() == 1);
        assert_eq!(signed_by(&authority, late), 0);
    }

    #[test]
    fn a_leaf_never_outlives_its_signer() {
        let authority = Authority::new(at(0)).unwrap();
        let now = at(0) + LIFE - SignedDuration::from_hours(2);
        let leaf = authority.issue(&["a.example".to_owned(), "127.0.0.1".to_owned()], now).unwrap();
        assert_eq!(leaf.renew, now + SignedDuration::from_hours(1));
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.certificate).unwrap();
        assert_eq!(parsed.validity().not_after.timestamp(), (at(0) + LIFE).as_second());
    }
}
