//! How the controller is reached: over TLS with a token, or in plain on one machine. Reads the two files anew for each
//! connection, since both change while the agent runs.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::{CertificateError, Error as TlsError};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Where the controller is and what proves whom to whom.
#[derive(Clone, Debug)]
pub struct Dial {
    /// URL of the controller; with `https` it has to prove itself.
    pub controller: String,
    /// PEM file of the authorities that may speak for the controller.
    pub ca_file: Option<PathBuf>,
    /// File of the token that proves this node.
    pub token_file: Option<PathBuf>,
    /// Name that the controller's certificate has to be for, by whatever address it is reached.
    pub controller_name: String,
}

/// Why the controller is not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The options do not go together.
    #[error("{0}")]
    Options(&'static str),
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file holds something else.
    #[error("{}: it holds no token: one line of visible ASCII", .0.display())]
    NoToken(PathBuf),
    /// The controller did not prove itself.
    #[error("the controller is not who it should be: {0}")]
    Untrusted(String),
    /// No connection.
    #[error("cannot reach the controller: {0}")]
    Connect(String),
}

impl Dial {
    /// In plain, to that URL.
    pub fn plain(controller: &str) -> Self {
        Self {
            controller: controller.to_owned(),
            ca_file: None,
            token_file: None,
            controller_name: String::new(),
        }
    }

    /// Whether the options go together.
    pub fn check(&self) -> Result<(), DialError> {
        match (self.controller.starts_with("https://"), &self.ca_file, &self.token_file) {
            (true, None, _) => Err(DialError::Options(
                "--controller is https and --ca-file is missing: give the file of the authorities that the controller's ConfigMap holds",
            )),
            (false, Some(_), _) => Err(DialError::Options(
                "--ca-file is for https: write --controller https://..., or leave it out",
            )),
            (false, _, Some(_)) => Err(DialError::Options(
                "--token-file is for https, since the token would be read on its way: write --controller https://..., or leave it out",
            )),
            _ => Ok(()),
        }
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Channel, DialError> {
        self.check()?;
        let unreachable = |error| DialError::Connect(with_causes(&error));
        let mut endpoint = Endpoint::from_shared(self.controller.clone())
            .map_err(unreachable)?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        if let Some(path) = &self.ca_file {
            let authorities = Certificate::from_pem(read(path).await?);
            let tls = ClientTlsConfig::new().ca_certificate(authorities).domain_name(&self.controller_name);
            endpoint = endpoint.tls_config(tls).map_err(unreachable)?;
        }
        endpoint.connect().await.map_err(|error| match tls_error(&error) {
            Some(tls) => DialError::Untrusted(self.explain(tls)),
            None => unreachable(error),
        })
    }

    /// `Bearer` and the token (RFC 6750 section 2.1), never shown in logs.
    pub async fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, DialError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = String::from_utf8(read(path).await?).map_err(|_| DialError::NoToken(path.clone()))?;
        let token = text.trim();
        let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
        let mut value =
            value.ok().filter(|_| !token.is_empty()).ok_or_else(|| DialError::NoToken(path.clone()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn explain(&self, error: &TlsError) -> String {
        let file = self.ca_file.as_deref().unwrap_or(Path::new("--ca-file")).display();
        let name = &self.controller_name;
        match error {
            TlsError::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => format!(
                "{error}; compare this node's clock with the controller's, and look at the controller's log"
            ),
            TlsError::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => {
                format!(
                    "{error}: none of the authorities in {file} has signed its certificate; that file has to follow the ConfigMap calico-vni-authority, or cert-manager's ca.crt"
                )
            }
            TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => format!(
                "{error}: its certificate is not for `{name}`; give the name that it is for as --controller-name"
            ),
            _ => error.to_string(),
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, DialError> {
    tokio::fs::read(path).await.map_err(|error| DialError::File { path: path.to_owned(), error })
}

/// The TLS error among the causes. What an I/O error wraps is not among its sources, but what that one wraps is.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = inner.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref());
        if found.is_some() {
            return found;
        }
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_tls(ca_file: Option<&str>, token_file: Option<&Path>) -> Dial {
        Dial {
            controller: "https://127.0.0.1:1".to_owned(),
            ca_file: ca_file.map(PathBuf::from),
            token_file: token_file.map(PathBuf::from),
            controller_name: "calico-vni-controller".to_owned(),
        }
    }

    #[test]
    fn a_token_never_goes_in_plain_and_a_controller_is_never_believed() {
        let said = |dial: &Dial| dial.check().unwrap_err().to_string();
        assert!(said(&over_tls(None, None)).contains("--ca-file is missing"));
        let plain = Dial::plain("http://127.0.0.1:1");
        plain.check().unwrap();
        assert!(
            said(&Dial { token_file: Some("t".into()), ..plain.clone() })
                .contains("--token-file is for https")
        );
        assert!(said(&Dial { ca_file: Some("c".into()), ..plain }).contains("--ca-file is for https"));
        over_tls(Some("c"), None).check().unwrap();
    }

    #[tokio::test]
    async fn a_token_is_read_anew_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let dial = over_tls(Some("c"), Some(&path));
        assert!(dial.authorization().await.unwrap_err().to_string().contains("token"));
        for token in ["one", "two"] {
            std::fs::write(&path, format!("{token}\n")).unwrap();
            let value = dial.authorization().await.unwrap().unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {token}"));
            assert!(!format!("{value:?}").contains(token));
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(dial.authorization().await, Err(DialError::NoToken(_))));
    }
}
