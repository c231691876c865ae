//! Keeps the certificate in use fresh, for as long as the controller runs. Reads where it comes from; who leads also rotates
//! the authority.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    SERVER_NAME,
    authority::AuthorityError,
    keep::{KeepError, Keeper},
    serving::{Certificate, ServingError},
};

/// How often it is looked whether anything changed. An agent that meets the old one meanwhile only dials again.
const LOOK: Duration = Duration::from_secs(30);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Where the certificate comes from.
pub enum Origin {
    /// From the controller's own authority, for these names.
    Authority {
        /// Where that is kept.
        keeper: Box<Keeper>,
        /// DNS names and addresses.
        names: Vec<String>,
    },
    /// From files that somebody else renews.
    Files {
        /// The certificate, and what lies between it and its authority, in PEM.
        certificate: PathBuf,
        /// Its key, in PEM.
        key: PathBuf,
    },
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Serving(#[from] ServingError),
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
}

/// What the certificate in use was made from: the authority's certificates, or the two files.
type Made = [Vec<u8>; 2];

/// Names under which agents may reach the controller's Service, besides the one that they ask for by default.
pub fn service_names(namespace: &str) -> Vec<String> {
    let qualified = format!("{SERVER_NAME}.{namespace}");
    [SERVER_NAME.to_owned(), format!("{qualified}.svc"), format!("{qualified}.svc.cluster.local"), qualified]
        .into()
}

impl Origin {
    /// Sets the certificate, and a new one whenever there is one, without end. A failure leaves the one that is in use.
    pub async fn keep_fresh(
        self,
        certificate: &Arc<Certificate>,
        mut leads: watch::Receiver<bool>,
    ) -> Infallible {
        let mut made: Option<Made> = None;
        let mut renew = Timestamp::MAX;
        let mut told = String::new();
        loop {
            let leading = *leads.borrow_and_update();
            let pause = match self.look(certificate, leading, &mut made, &mut renew).await {
                Ok(()) => {
                    told.clear();
                    LOOK
                }
                Err(error) => {
                    let error = error.to_string();
                    // The same again is no news.
                    if error != told {
                        warn!(
                            error,
                            in_use = certificate.is_set(),
                            "no new certificate for agents; what is in use stays"
                        );
                        told = error;
                    }
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Who leads now makes an authority where there is none. When nobody can tell any more, only time counts.
                () = async { if leads.changed().await.is_err() { std::future::pending().await } } => {}
            }
        }
    }

    async fn look(
        &self,
        certificate: &Arc<Certificate>,
        leading: bool,
        made: &mut Option<Made>,
        renew: &mut Timestamp,
    ) -> Result<(), UpkeepError> {
        let now = Timestamp::now();
        match self {
            Self::Authority { keeper, names } => {
                let Some(authority) = keeper.authority(leading, now).await? else { return Ok(()) };
                let from = [authority.bundle().into_bytes(), Vec::new()];
                if made.as_ref() != Some(&from) || now >= *renew {
                    let leaf = authority.issue(names, now)?;
                    *renew = leaf.renew;
                    certificate.set(leaf)?;
                    info!(renew = %*renew, "agents are served with a new certificate");
                    *made = Some(from);
                }
            }
            Self::Files { certificate: chain, key } => {
                let from = [read(chain).await?, read(key).await?];
                if made.as_ref() != Some(&from) {
                    certificate.set_from(chain, key)?;
                    info!(file = %chain.display(), "agents are served with a new certificate");
                    *made = Some(from);
                }
            }
        }
        Ok(())
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, UpkeepError> {
    tokio::fs::read(path).await.map_err(|error| UpkeepError::Read { path: path.clone(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    #[tokio::test]
    async fn files_are_read_again_when_they_change_and_a_half_written_pair_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let origin = Origin::Files { certificate: chain.clone(), key: key.clone() };
        let certificate = Certificate::none();
        let (mut made, mut renew) = (None, Timestamp::MAX);
        let error = origin.look(&certificate, true, &mut made, &mut renew).await.unwrap_err().to_string();
        assert!(error.contains("tls.crt") && !certificate.is_set(), "{error}");

        let put = |path: &PathBuf, text: String| std::fs::write(path, text).unwrap();
        let one = Authority::new(Timestamp::now()).unwrap();
        put(&chain, one.bundle());
        put(&key, one.keys());
        origin.look(&certificate, true, &mut made, &mut renew).await.unwrap();
        assert!(certificate.is_set());
        let first = made.clone();

        let two = Authority::new(Timestamp::now()).unwrap();
        put(&chain, two.bundle());
        origin.look(&certificate, true, &mut made, &mut renew).await.unwrap_err();
        assert!(made == first && certificate.is_set(), "the one in use stays");
        put(&key, two.keys());
        origin.look(&certificate, true, &mut made, &mut renew).await.unwrap();
        assert_eq!(made.unwrap(), [two.bundle().into_bytes(), two.keys().into_bytes()]);
    }
}
