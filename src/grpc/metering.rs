//! `MeteringService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::meter::Meter;

use super::status::status;
use super::v1::metering_service_server::MeteringService;
use super::{request, response, to_the_end, v1};

/// Serves [`Meter`] as `tollgate.v1.MeteringService`.
pub struct Metering(pub Arc<Meter>);

#[tonic::async_trait]
impl MeteringService for Metering {
    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let call = request::reserve(request.into_inner()).map_err(status)?;
        let meter = Arc::clone(&self.0);
        let work = async move { meter.reserve(&call.user, &call.event, call.ttl, call.request_id.as_ref()).await };
        Ok(Response::new(response::reserve(to_the_end(work).await?)))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let (id, actual) = request::commit(request.into_inner()).map_err(status)?;
        let meter = Arc::clone(&self.0);
        let work = async move { meter.commit(&id, actual.as_ref()).await };
        Ok(Response::new(response::commit(to_the_end(work).await?)))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let (id, reason) = request::release(request.into_inner()).map_err(status)?;
        tracing::debug!(reservation = %id.nonce, reason, "release");
        let meter = Arc::clone(&self.0);
        let work = async move { meter.release(&id).await };
        Ok(Response::new(response::release(to_the_end(work).await?)))
    }

    async fn track(&self, request: Request<v1::TrackRequest>) -> Result<Response<v1::TrackResponse>, Status> {
        let (user, call) = request::track(request.into_inner()).map_err(status)?;
        let meter = Arc::clone(&self.0);
        let work = async move { meter.track(&user, &call).await };
        Ok(Response::new(response::track(to_the_end(work).await?)))
    }

    async fn can_use(&self, request: Request<v1::CanUseRequest>) -> Result<Response<v1::CanUseResponse>, Status> {
        let (user, event) = request::can_use(request.into_inner()).map_err(status)?;
        let decision = self.0.can_use(&user, &event).await.map_err(status)?;
        Ok(Response::new(response::can_use(decision)))
    }

    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Result<Response<v1::GetUsageResponse>, Status> {
        let (user, event, at_ms) = request::get_usage(request.into_inner()).map_err(status)?;
        let usage = self.0.usage(&user, event.as_ref(), at_ms).await.map_err(status)?;
        Ok(Response::new(response::usage(user.as_str().to_owned(), usage)))
    }
}
