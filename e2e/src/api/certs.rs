//! Keys, certificates and tokens of an API side: made for one run, thrown away with it. Writes to its folder alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::User;

/// Files of a run.
pub struct Certs {
    /// Certificate of the authority.
    pub ca: PathBuf,
    /// Certificate of kube-apiserver.
    pub server_cert: PathBuf,
    /// Its key.
    pub server_key: PathBuf,
    /// Key that service account tokens are signed by.
    pub service_account_key: PathBuf,
    /// Its public half, which they are checked by.
    pub service_account_public: PathBuf,
    secret: String,
}

impl Certs {
    /// A user's bearer token.
    pub fn token(&self, user: User) -> String {
        format!("{}-{}", user.short(), self.secret)
    }
}

/// Makes and writes them.
pub fn write(dir: &Path) -> Result<Certs> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "calico-vni lab");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    // Nodes reach it by a forwarder on their own loopback, so one name serves all.
    let server =
        CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?.signed_by(&key, &ca)?;
    let put = |name: &str, contents: &str| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    };
    let service_account = KeyPair::generate()?;
    Ok(Certs {
        ca: put("ca.crt", &ca.pem())?,
        server_cert: put("server.crt", &server.pem())?,
        server_key: put("server.key", &key.serialize_pem())?,
        service_account_key: put("service-account.key", &service_account.serialize_pem())?,
        service_account_public: put("service-account.pub", &service_account.public_key_pem())?,
        // A token has to be hard to guess for others on this machine; a fresh key is that.
        secret: hex::encode(&KeyPair::generate()?.public_key_raw()[1..17]),
    })
}
