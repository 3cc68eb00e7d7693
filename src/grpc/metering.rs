//! `MeteringService`.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use crate::apps::Apps;
use crate::domain::id::base64url;
use crate::telemetry::outcomes;

use super::caller::Called;
use super::request::CommitCall;
use super::status::status;
use super::v1::metering_service_server::MeteringService;
use super::{request, response, run_to_completion, v1};

/// Serves the [`Meter`](crate::meter::Meter) of the caller's app as `tollgate.v1.MeteringService`.
pub struct Metering(pub Arc<Apps>);

#[tonic::async_trait]
impl MeteringService for Metering {
    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let call = request::reserve(request.into_inner()).map_err(status)?;
        let owner = called.owner(&call.user);
        let work = async move { called.reserve(&owner, &call.event, call.terms, call.request_id.as_ref()).await };
        Ok(Response::new(response::reserve(run_to_completion(work).await?)))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let call = request::commit(request.into_inner()).map_err(status)?;
        called.check_owns(call.reservation())?;
        let work = async move {
            match call {
                CommitCall::Final(id, actual) => called.commit(&id, actual.as_ref()).await,
                CommitCall::Partial(id, actual, ttl) => called.commit_part(&id, &actual, ttl).await,
            }
        };
        Ok(Response::new(response::commit(run_to_completion(work).await?)))
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Result<Response<v1::ExtendResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let call = request::extend(request.into_inner()).map_err(status)?;
        called.check_owns(&call.reservation)?;
        let work = async move { called.extend(&call).await };
        Ok(Response::new(response::extend(run_to_completion(work).await?)))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let (id, reason) = request::release(request.into_inner()).map_err(status)?;
        called.check_owns(&id)?;
        tracing::debug!(reservation = base64url(&id.field), reason, "release");
        let work = async move { called.release(&id).await };
        Ok(Response::new(response::release(run_to_completion(work).await?)))
    }

    async fn track(&self, request: Request<v1::TrackRequest>) -> Result<Response<v1::TrackResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let (user, call) = request::track(request.into_inner()).map_err(status)?;
        let owner = called.owner(&user);
        let work = async move { called.track(&owner, &call).await };
        Ok(Response::new(response::track(run_to_completion(work).await?)))
    }

    async fn reset_usage(
        &self,
        request: Request<v1::ResetUsageRequest>,
    ) -> Result<Response<v1::ResetUsageResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let request::ResetCall { user, groups, reason, request_id } =
            request::reset_usage(request.into_inner()).map_err(status)?;
        let owner = called.owner(&user);
        let work = async move {
            let reset = called.reset(&owner, &groups, request_id.as_ref()).await?;
            tracing::info!(groups = reset.standings.len(), replayed = reset.replayed, reason, "usage is reset");
            Ok(reset)
        };
        Ok(Response::new(response::reset_usage(run_to_completion(work).await?)))
    }

    async fn batch_track(
        &self,
        request: Request<v1::BatchTrackRequest>,
    ) -> Result<Response<v1::BatchTrackResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let requests = request::batch(request.into_inner()).map_err(status)?;
        let work = async move { Ok(batch_results(&called, requests).await) };
        Ok(Response::new(v1::BatchTrackResponse { results: run_to_completion(work).await? }))
    }

    async fn can_use(&self, request: Request<v1::CanUseRequest>) -> Result<Response<v1::CanUseResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let (user, event) = request::can_use(request.into_inner()).map_err(status)?;
        let owner = called.owner(&user);
        let decision = called.can_use(&owner, &event).await.map_err(status)?;
        Ok(Response::new(response::can_use(decision)))
    }

    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Result<Response<v1::GetUsageResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let (user, event, at_ms) = request::get_usage(request.into_inner()).map_err(status)?;
        called.check_sees(&user)?;
        let owner = called.owner(&user);
        let usage = called.usage(&owner, event.as_ref(), at_ms).await.map_err(status)?;
        Ok(Response::new(response::usage(user.as_str().to_owned(), usage)))
    }

    async fn get_reservation(
        &self,
        request: Request<v1::GetReservationRequest>,
    ) -> Result<Response<v1::GetReservationResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let id = request::get_reservation(request.into_inner()).map_err(status)?;
        called.check_owns(&id)?;
        let reservation = called.reservation(&id).await.map_err(status)?;
        Ok(Response::new(v1::GetReservationResponse { reservation: Some(response::reservation(reservation)) }))
    }

    async fn list_reservations(
        &self,
        request: Request<v1::ListReservationsRequest>,
    ) -> Result<Response<v1::ListReservationsResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let listed = request::list_reservations(request.into_inner(), |user| called.owner(user));
        let (owner, listing) = listed.map_err(status)?;
        let page = called.reservations(&owner, listing).await.map_err(status)?;
        Ok(Response::new(response::reservations(&owner, page)))
    }
}

/// Does what each request asks, and answers each as Track would.
async fn batch_results(called: &Called, requests: Vec<v1::TrackRequest>) -> Vec<v1::BatchTrackResult> {
    let (mut calls, mut refused) = (Vec::with_capacity(requests.len()), Vec::with_capacity(requests.len()));
    for request in requests {
        refused.push(match request::track(request) {
            Ok((user, call)) => {
                calls.push((called.owner(&user), call));
                None
            }
            Err(fault) => Some(fault),
        });
    }
    let mut tracked = called.track_all(calls).await.into_iter();
    let results = refused.into_iter().filter_map(|refused| match refused {
        Some(fault) => Some(Err(fault)),
        // As many as were called.
        None => tracked.next(),
    });
    let results = results.map(|result| {
        let outcome = result.as_ref().ok().map(outcomes::of_tracked);
        let answer = result.map(response::track).map_err(status);
        outcomes::tracked_in_batch(answer.as_ref().err().map_or(Code::Ok, Status::code).into(), outcome);
        response::batch_result(answer)
    });
    let results = results.collect();
    outcomes::batch_tracked();
    results
}
