//! Where the authority is kept: its keys in a Secret that only the controller reads, its certificates in a ConfigMap that
//! agents mount. Reads and writes these two objects.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tracing::info;

use crate::authority::{Authority, AuthorityError};

/// Name of the Secret and of the ConfigMap.
pub const NAME: &str = "calico-vni-authority";
/// Key of the certificates, in both.
pub const CERTIFICATES: &str = "ca.crt";
/// Key of the private keys, in the Secret.
pub const KEYS: &str = "ca.key";

/// Why the authority cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The Secret holds something else.
    #[error(
        "Secret {namespace}/{NAME}: {source}; delete it to have a new authority made (agents follow within minutes)"
    )]
    Damaged {
        /// Its namespace.
        namespace: String,
        /// What is wrong.
        source: AuthorityError,
    },
    /// A key or certificate could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The API server refused or did not answer.
    #[error("{object} {namespace}/{NAME}: {source}")]
    Api {
        /// Kind.
        object: &'static str,
        /// Namespace.
        namespace: String,
        /// What it said.
        source: Box<kube::Error>,
    },
}

/// Keeps the authority of one namespace.
#[derive(Clone)]
pub struct Keeper {
    namespace: String,
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
}

impl Keeper {
    /// For the objects in that namespace.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
        }
    }

    /// The authority as it is kept. Who leads makes one where there is none, rotates it when it is due, and publishes
    /// its certificates before it returns; who does not may find none yet.
    pub async fn authority(&self, leads: bool, now: Timestamp) -> Result<Option<Authority>, KeepError> {
        let held = self.secrets.get_opt(NAME).await.map_err(|e| self.api("Secret", e))?;
        let Some(secret) = held else {
            if !leads {
                return Ok(None);
            }
            let authority = Authority::new(now)?;
            let secret = self.secret(&authority, None);
            self.secrets.create(&PostParams::default(), &secret).await.map_err(|e| self.api("Secret", e))?;
            info!(namespace = self.namespace, secret = NAME, "made an authority for the agents' connections");
            self.publish(&authority).await?;
            return Ok(Some(authority));
        };
        let part =
            |key| secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |bytes| &bytes.0);
        let authority = Authority::read(part(CERTIFICATES), part(KEYS))
            .map_err(|source| KeepError::Damaged { namespace: self.namespace.clone(), source })?;
        if !leads {
            return Ok(Some(authority));
        }
        let (authority, changed) = authority.rotated(now)?;
        if changed {
            // At the version that was read: of two that think they lead, one is refused.
            let secret = self.secret(&authority, secret.metadata.resource_version);
            self.secrets
                .replace(NAME, &PostParams::default(), &secret)
                .await
                .map_err(|e| self.api("Secret", e))?;
            info!(namespace = self.namespace, secret = NAME, ?authority, "rotated the authority");
        }
        self.publish(&authority).await?;
        Ok(Some(authority))
    }

    async fn publish(&self, authority: &Authority) -> Result<(), KeepError> {
        let wanted = BTreeMap::from([(CERTIFICATES.to_owned(), authority.bundle())]);
        let held = self.config_maps.get_opt(NAME).await.map_err(|e| self.api("ConfigMap", e))?;
        let version = match &held {
            Some(held) if held.data.as_ref() == Some(&wanted) => return Ok(()),
            Some(held) => held.metadata.resource_version.clone(),
            None => None,
        };
        let config_map =
            ConfigMap { metadata: self.meta(version), data: Some(wanted), ..ConfigMap::default() };
        let params = PostParams::default();
        let written = match held {
            Some(_) => self.config_maps.replace(NAME, &params, &config_map).await,
            None => self.config_maps.create(&params, &config_map).await,
        };
        written.map_err(|e| self.api("ConfigMap", e))?;
        info!(namespace = self.namespace, config_map = NAME, "published the authority's certificates");
        Ok(())
    }

    fn secret(&self, authority: &Authority, version: Option<String>) -> Secret {
        let data = [(CERTIFICATES, authority.bundle()), (KEYS, authority.keys())];
        let data = data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        Secret { metadata: self.meta(version), data: Some(data.collect()), ..Secret::default() }
    }

    fn meta(&self, resource_version: Option<String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(self.namespace.clone()),
            resource_version,
            ..ObjectMeta::default()
        }
    }

    fn api(&self, object: &'static str, source: kube::Error) -> KeepError {
        KeepError::Api { object, namespace: self.namespace.clone(), source: Box::new(source) }
    }
}
