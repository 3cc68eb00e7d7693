//! `PlanService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::fault::Fault;
use crate::domain::plan::{Catalog, Plan};

use super::status::status;
use super::v1::plan_service_server::PlanService;
use super::{request, response, v1};

/// Serves the catalog as `tollgate.v1.PlanService`.
pub struct Plans(pub Arc<Catalog>);

impl Plans {
    fn shown(&self, plan: &Plan) -> v1::Plan {
        let is_default = self.0.default_plan().is_some_and(|default| default.id == plan.id);
        response::plan(plan, is_default)
    }
}

#[tonic::async_trait]
impl PlanService for Plans {
    async fn list_plans(
        &self,
        request: Request<v1::ListPlansRequest>,
    ) -> Result<Response<v1::ListPlansResponse>, Status> {
        let v1::ListPlansRequest {} = request.into_inner();
        let plans = self.0.plans().iter().map(|plan| self.shown(plan)).collect();
        Ok(Response::new(v1::ListPlansResponse { plans }))
    }

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanResponse>, Status> {
        let plan_id = request::get_plan(request.into_inner()).map_err(status)?;
        let plan = self.0.plan(&plan_id).ok_or_else(|| status(Fault::PlanNotFound(plan_id.clone())))?;
        Ok(Response::new(v1::GetPlanResponse { plan: Some(self.shown(plan)) }))
    }
}
