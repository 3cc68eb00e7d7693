//! `PlanService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::apps::Apps;
use crate::domain::fault::Fault;
use crate::domain::plan::{Catalog, Plan};

use super::caller::Called;
use super::status::status;
use super::v1::plan_service_server::PlanService;
use super::{request, response, v1};

/// Serves the catalog of the caller's app as `tollgate.v1.PlanService`.
pub struct Plans(pub Arc<Apps>);

fn shown(catalog: &Catalog, plan: &Plan) -> v1::Plan {
    let is_default = catalog.default_plan().is_some_and(|default| default.id == plan.id);
    response::plan(plan, is_default)
}

#[tonic::async_trait]
impl PlanService for Plans {
    async fn list_plans(
        &self,
        request: Request<v1::ListPlansRequest>,
    ) -> Result<Response<v1::ListPlansResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let v1::ListPlansRequest {} = request.into_inner();
        let catalog = called.catalog();
        let plans = catalog.plans().iter().map(|plan| shown(catalog, plan)).collect();
        Ok(Response::new(v1::ListPlansResponse { plans }))
    }

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let plan_id = request::get_plan(request.into_inner()).map_err(status)?;
        let catalog = called.catalog();
        let plan = catalog.plan(&plan_id).ok_or_else(|| status(Fault::PlanNotFound(plan_id.clone())))?;
        Ok(Response::new(v1::GetPlanResponse { plan: Some(shown(catalog, plan)) }))
    }
}
