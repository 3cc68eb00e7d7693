//! The server that only answers: one method, with always the same answer. What it costs is what gRPC costs here, with messages of
//! these sizes.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin};
use tollgate::grpc::rls::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use tollgate::grpc::rls::{RateLimitRequest, RateLimitResponse};
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_server::{MeteringService, MeteringServiceServer};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::process;

/// What it answers, encoded.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Reserve(Vec<u8>),
    ShouldRateLimit(Vec<u8>),
}

/// A running one. It ends when this is dropped.
pub struct Echo {
    child: Child,
    /// While it is open the process stays.
    _input: ChildStdin,
    pub address: SocketAddr,
}

impl Echo {
    /// Starts one that gives this answer to Reserve.
    pub async fn reserve(answer: &v1::ReserveResponse) -> Result<Self> {
        Self::start(Answer::Reserve(answer.encode_to_vec())).await
    }

    /// Starts one that gives this answer to `ShouldRateLimit` of Envoy's rate limit service.
    pub async fn should_rate_limit(answer: &RateLimitResponse) -> Result<Self> {
        Self::start(Answer::ShouldRateLimit(answer.encode_to_vec())).await
    }

    async fn start(answer: Answer) -> Result<Self> {
        let mut child = process::role("echo")?.spawn().context("cannot start the echo server")?;
        let mut input = child.stdin.take().context("it is piped")?;
        let line = serde_json::to_string(&answer)?;
        input.write_all(format!("{line}\n").as_bytes()).await?;
        let mut told = String::new();
        BufReader::new(child.stdout.take().context("it is piped")?).read_line(&mut told).await?;
        let address = told.trim().parse().context("the echo server did not start")?;
        Ok(Self { child, _input: input, address })
    }

    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the echo server has ended")
    }
}

/// What its process does: reads the answer, tells where it listens, and serves until its input closes.
pub async fn process() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line)?;
    process::end_with_parent();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = Server::builder();
    let router = match answer {
        Answer::Reserve(bytes) => {
            let answer = v1::ReserveResponse::decode(bytes.as_slice())?;
            server.add_service(MeteringServiceServer::new(Canned(answer)))
        }
        Answer::ShouldRateLimit(bytes) => {
            let answer = RateLimitResponse::decode(bytes.as_slice())?;
            server.add_service(RateLimitServiceServer::new(Canned(answer)))
        }
    };
    router.serve_with_incoming(incoming).await?;
    Ok(())
}

struct Canned<T>(T);

#[tonic::async_trait]
impl RateLimitService for Canned<RateLimitResponse> {
    async fn should_rate_limit(&self, _: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }
}

fn none<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("only Reserve is answered"))
}

#[tonic::async_trait]
impl MeteringService for Canned<v1::ReserveResponse> {
    async fn reserve(&self, _: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn commit(&self, _: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        none()
    }

    async fn extend(&self, _: Request<v1::ExtendRequest>) -> Result<Response<v1::ExtendResponse>, Status> {
        none()
    }

    async fn release(&self, _: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        none()
    }

    async fn track(&self, _: Request<v1::TrackRequest>) -> Result<Response<v1::TrackResponse>, Status> {
        none()
    }

    async fn batch_track(&self, _: Request<v1::BatchTrackRequest>) -> Result<Response<v1::BatchTrackResponse>, Status> {
        none()
    }

    async fn get_reservation(
        &self,
        _: Request<v1::GetReservationRequest>,
    ) -> Result<Response<v1::GetReservationResponse>, Status> {
        none()
    }

    async fn list_reservations(
        &self,
        _: Request<v1::ListReservationsRequest>,
    ) -> Result<Response<v1::ListReservationsResponse>, Status> {
        none()
    }

    async fn can_use(&self, _: Request<v1::CanUseRequest>) -> Result<Response<v1::CanUseResponse>, Status> {
        none()
    }

    async fn get_usage(&self, _: Request<v1::GetUsageRequest>) -> Result<Response<v1::GetUsageResponse>, Status> {
        none()
    }

    async fn reset_usage(&self, _: Request<v1::ResetUsageRequest>) -> Result<Response<v1::ResetUsageResponse>, Status> {
        none()
    }
}
