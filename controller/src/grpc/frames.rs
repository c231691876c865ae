//! The service on the wire. A message is framed once, and all streams that it goes to send the same octets: with tonic's own
//! encoder each stream would keep a copy of the guard for as long as it lives.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use calico_vni_proto::wire::router_server::SERVICE_NAME;
use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{
    Code, Request, Status, Streaming, body::Body, codec::BufferSettings, metadata::GRPC_CONTENT_TYPE,
    server::NamedService,
};
use tonic_prost::ProstDecoder;

use super::{FROM_AGENT_MAX, Service};

/// Octets that a stream keeps for what an agent says; more is had when more comes.
const INBOUND: usize = 1 << 10;

/// The service as the server takes it.
#[derive(Clone)]
pub(super) struct Served(pub Arc<Service>);

impl NamedService for Served {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for Served {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self(service) = self.clone();
        Box::pin(async move {
            // The service's name, the first part of the path, is what led here.
            if !request.uri().path().ends_with("/Sync") {
                return Ok(Status::new(Code::Unimplemented, "there is only Sync").into_http());
            }
            let decoder = ProstDecoder::new(BufferSettings::new(INBOUND, INBOUND));
            let inbound = |body| Streaming::new_request(decoder, body, None, Some(FROM_AGENT_MAX));
            Ok(match service.sync(Request::from_http(request.map(inbound))).await {
                Ok(frames) => response(frames),
                Err(status) => status.into_http(),
            })
        })
    }
}

/// A stream that ends well, whenever it ends.
fn response(frames: impl Stream<Item = Bytes> + Send + 'static) -> http::Response<Body> {
    let well = HeaderMap::from_iter([(Status::GRPC_STATUS, (Code::Ok as u16).into())]);
    let frames = frames.map(Frame::data).chain(stream::iter([Frame::trailers(well)]));
    let mut response = http::Response::new(Body::new(StreamBody::new(frames.map(Ok::<_, Status>))));
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}
