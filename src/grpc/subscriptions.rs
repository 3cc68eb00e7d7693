//! `SubscriptionService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::apps::Apps;
use crate::domain::id::UserId;
use crate::domain::subscription::Subscription;

use super::caller::Called;
use super::status::status;
use super::v1::subscription_service_server::SubscriptionService;
use super::{request, response, run_to_completion, v1};

/// Serves the [`Meter`](crate::meter::Meter) of the caller's app as `tollgate.v1.SubscriptionService`.
pub struct Subscriptions(pub Arc<Apps>);

fn written(user: &UserId, subscription: &Subscription) -> Option<v1::Subscription> {
    Some(response::subscription(user.as_str().to_owned(), subscription))
}

#[tonic::async_trait]
impl SubscriptionService for Subscriptions {
    async fn upsert_subscription(
        &self,
        request: Request<v1::UpsertSubscriptionRequest>,
    ) -> Result<Response<v1::UpsertSubscriptionResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let (user, upsert) = request::upsert(request.into_inner()).map_err(status)?;
        let owner = called.owner(&user);
        let subscription = run_to_completion(async move { called.upsert_subscription(&owner, &upsert).await }).await?;
        Ok(Response::new(v1::UpsertSubscriptionResponse { subscription: written(&user, &subscription) }))
    }

    async fn get_subscription(
        &self,
        request: Request<v1::GetSubscriptionRequest>,
    ) -> Result<Response<v1::GetSubscriptionResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let v1::GetSubscriptionRequest { user_id } = request.into_inner();
        let user = request::user(&user_id).map_err(status)?;
        let owner = called.owner(&user);
        let subscription = called.subscription(&owner).await.map_err(status)?;
        Ok(Response::new(v1::GetSubscriptionResponse { subscription: written(&user, &subscription) }))
    }

    async fn cancel_subscription(
        &self,
        request: Request<v1::CancelSubscriptionRequest>,
    ) -> Result<Response<v1::CancelSubscriptionResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let (user, end_ms) = request::cancel(request.into_inner()).map_err(status)?;
        let owner = called.owner(&user);
        let subscription = run_to_completion(async move { called.cancel_subscription(&owner, end_ms).await }).await?;
        Ok(Response::new(v1::CancelSubscriptionResponse { subscription: written(&user, &subscription) }))
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let v1::DeleteUserRequest { user_id } = request.into_inner();
        let user = request::user(&user_id).map_err(status)?;
        let owner = called.owner(&user);
        run_to_completion(async move { called.delete_user(&owner).await }).await?;
        Ok(Response::new(v1::DeleteUserResponse {}))
    }
}
