//! A layer of the API server's client that lets writes through only while this controller leads. Reads always pass.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Method, Request};
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service};

/// Until when this controller may write. Clones are the same fence.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

/// What a writer is told.
#[derive(Debug, thiserror::Error)]
pub enum Fenced {
    /// Before the write.
    #[error("nothing is written: this controller does not lead")]
    Shut,
    /// While it was under way; it may have been done.
    #[error("this controller's lead ended while the API server was asked")]
    Ended,
}

impl Fence {
    /// Writes pass until that moment.
    pub fn open_until(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Nothing passes from now on.
    pub fn shut(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn until(&self) -> Option<Instant> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| Instant::now() < *until)
    }
}

impl<S> Layer<S> for Fence {
    type Service = Behind<S>;

    fn layer(&self, inner: S) -> Behind<S> {
        Behind { inner, fence: self.clone() }
    }
}

/// What is behind a fence.
#[derive(Clone, Debug)]
pub struct Behind<S> {
    inner: S,
    fence: Fence,
}

impl<S, B> Service<Request<B>> for Behind<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    S::Response: 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            let answer = self.inner.call(request);
            return Box::pin(async { answer.await.map_err(Into::into) });
        }
        let Some(until) = self.fence.until() else {
            return Box::pin(async { Err(Fenced::Shut.into()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            match timeout_at(until, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(Fenced::Ended.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower::service_fn;

    use super::*;

    async fn ask(fence: &Fence, method: Method, takes: Duration) -> Result<(), String> {
        let server = service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(takes).await;
            Ok::<_, BoxError>(())
        });
        let request = Request::builder().method(method).body(()).unwrap();
        fence.layer(server).call(request).await.map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn writes_pass_while_it_leads_and_reads_always() {
        let fence = Fence::default();
        let (soon, late) = (Duration::from_millis(1), Duration::from_secs(5));
        assert!(ask(&fence, Method::GET, late).await.is_ok());
        assert!(ask(&fence, Method::POST, soon).await.unwrap_err().contains("does not lead"));
        fence.open_until(Instant::now() + Duration::from_secs(4));
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert_eq!(ask(&fence, method, soon).await, Ok(()));
        }
        assert!(ask(&fence, Method::PUT, late).await.unwrap_err().contains("ended while"));
        assert!(
            ask(&fence, Method::PUT, soon).await.unwrap_err().contains("does not lead"),
            "it was not renewed"
        );
        fence.open_until(Instant::now() + late);
        fence.shut();
        assert!(ask(&fence, Method::DELETE, soon).await.is_err());
    }
}
