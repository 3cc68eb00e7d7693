//! The RPCs that this server answers: one table of their paths, their callers, and their properties.
//!
//! The gate reads it to decide who may call what, and telemetry to name calls. A new RPC needs a line here.

/// An RPC.
#[allow(missing_docs, reason = "the contract describes them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rpc {
    Reserve,
    Commit,
    Extend,
    Release,
    Track,
    BatchTrack,
    CanUse,
    GetUsage,
    ResetUsage,
    GetReservation,
    ListReservations,
    UpsertSubscription,
    GetSubscription,
    CancelSubscription,
    DeleteUser,
    ListPlans,
    GetPlan,
    ShouldRateLimit,
    HealthCheck,
    HealthWatch,
    Reflection,
    /// A path that this server does not answer.
    Unknown,
}

/// The callers that may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Holders of a secret key.
    SecretKeys,
    /// Holders of a secret key. A public key may call it for the user that its token names.
    PublicKeysForTheirUser,
    /// Holders of any key.
    AllKeys,
    /// Everybody may call it.
    Everybody,
    /// Holders of a secret key, or everybody where `--open-reflection` says so.
    SecretKeysUnlessOpen,
    /// Nobody may call it: there is no such RPC.
    Nobody,
}

/// A line of the table.
#[derive(Debug)]
pub struct Facts {
    /// The RPC.
    pub rpc: Rpc,
    /// The name in metrics, logs and traces.
    pub name: &'static str,
    /// The paths by which it is called.
    pub paths: &'static [&'static str],
    /// The callers that may call it.
    pub callers: Callers,
    /// True if it can change stored data.
    pub writes: bool,
    /// True if its calls are work. Other calls only look at whether, and what, the server serves.
    pub is_work: bool,
}

/// The table, in the order of [`Rpc`].
const TABLE: [Facts; 22] = [
    work(Rpc::Reserve, "Reserve", &["/tollgate.v1.MeteringService/Reserve"], Callers::SecretKeys, true),
    work(Rpc::Commit, "Commit", &["/tollgate.v1.MeteringService/Commit"], Callers::SecretKeys, true),
    work(Rpc::Extend, "Extend", &["/tollgate.v1.MeteringService/Extend"], Callers::SecretKeys, true),
    work(Rpc::Release, "Release", &["/tollgate.v1.MeteringService/Release"], Callers::SecretKeys, true),
    work(Rpc::Track, "Track", &["/tollgate.v1.MeteringService/Track"], Callers::SecretKeys, true),
    work(Rpc::BatchTrack, "BatchTrack", &["/tollgate.v1.MeteringService/BatchTrack"], Callers::SecretKeys, true),
    work(Rpc::CanUse, "CanUse", &["/tollgate.v1.MeteringService/CanUse"], Callers::SecretKeys, false),
    work(Rpc::GetUsage, "GetUsage", &["/tollgate.v1.MeteringService/GetUsage"], Callers::PublicKeysForTheirUser, false),
    work(Rpc::ResetUsage, "ResetUsage", &["/tollgate.v1.MeteringService/ResetUsage"], Callers::SecretKeys, true),
    work(
        Rpc::GetReservation,
        "GetReservation",
        &["/tollgate.v1.MeteringService/GetReservation"],
        Callers::SecretKeys,
        false,
    ),
    work(
        Rpc::ListReservations,
        "ListReservations",
        &["/tollgate.v1.MeteringService/ListReservations"],
        Callers::SecretKeys,
        false,
    ),
    work(
        Rpc::UpsertSubscription,
        "UpsertSubscription",
        &["/tollgate.v1.SubscriptionService/UpsertSubscription"],
        Callers::SecretKeys,
        true,
    ),
    work(
        Rpc::GetSubscription,
        "GetSubscription",
        &["/tollgate.v1.SubscriptionService/GetSubscription"],
        Callers::SecretKeys,
        false,
    ),
    work(
        Rpc::CancelSubscription,
        "CancelSubscription",
        &["/tollgate.v1.SubscriptionService/CancelSubscription"],
        Callers::SecretKeys,
        true,
    ),
    work(Rpc::DeleteUser, "DeleteUser", &["/tollgate.v1.SubscriptionService/DeleteUser"], Callers::SecretKeys, true),
    work(Rpc::ListPlans, "ListPlans", &["/tollgate.v1.PlanService/ListPlans"], Callers::AllKeys, false),
    work(Rpc::GetPlan, "GetPlan", &["/tollgate.v1.PlanService/GetPlan"], Callers::AllKeys, false),
    work(
        Rpc::ShouldRateLimit,
        "ShouldRateLimit",
        &["/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"],
        Callers::SecretKeys,
        true,
    ),
    look(Rpc::HealthCheck, "HealthCheck", &["/grpc.health.v1.Health/Check"], Callers::Everybody),
    look(Rpc::HealthWatch, "HealthWatch", &["/grpc.health.v1.Health/Watch"], Callers::Everybody),
    look(
        Rpc::Reflection,
        "Reflection",
        &[
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ],
        Callers::SecretKeysUnlessOpen,
    ),
    look(Rpc::Unknown, "unknown", &[], Callers::Nobody),
];

const fn work(rpc: Rpc, name: &'static str, paths: &'static [&'static str], callers: Callers, writes: bool) -> Facts {
    Facts { rpc, name, paths, callers, writes, is_work: true }
}

const fn look(rpc: Rpc, name: &'static str, paths: &'static [&'static str], callers: Callers) -> Facts {
    Facts { rpc, name, paths, callers, writes: false, is_work: false }
}

impl Rpc {
    /// The whole table, in the order of the numbers of [`Rpc`].
    #[must_use]
    pub fn table() -> &'static [Facts] {
        const { &TABLE }
    }

    /// The line of this RPC.
    #[must_use]
    pub fn facts(self) -> &'static Facts {
        &Self::table()[self as usize]
    }

    /// The RPC that a request with this path calls.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let found = Self::table().iter().find(|facts| facts.paths.contains(&path));
        found.map_or(Self::Unknown, |facts| facts.rpc)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use prost_types::method_options::IdempotencyLevel;

    use super::*;

    #[test]
    fn every_line_stands_at_the_number_of_its_rpc() {
        for (number, facts) in Rpc::table().iter().enumerate() {
            assert_eq!(facts.rpc as usize, number, "{facts:?}");
            for path in facts.paths {
                assert_eq!(Rpc::of_path(path), facts.rpc);
            }
        }
    }

    #[test]
    fn a_path_that_nobody_serves_is_unknown() {
        for path in ["", "/", "/tollgate.v1.MeteringService/reserve", "/tollgate.v1.MeteringService/Reserve/", "/alice"]
        {
            assert_eq!(Rpc::of_path(path), Rpc::Unknown, "{path}");
        }
    }

    /// The methods of these packages, and whether each is declared free of side effects.
    fn declared(descriptors: &[u8], package: &str) -> Vec<(String, bool)> {
        let files = FileDescriptorSet::decode(descriptors).unwrap().file;
        let mut methods = Vec::new();
        for file in files.into_iter().filter(|file| file.package() == package) {
            for service in file.service {
                for method in &service.method {
                    let level = method
                        .options
                        .as_ref()
                        .map_or(IdempotencyLevel::IdempotencyUnknown, |it| it.idempotency_level());
                    let path = format!("/{package}.{}/{}", service.name(), method.name());
                    methods.push((path, level == IdempotencyLevel::NoSideEffects));
                }
            }
        }
        assert!(!methods.is_empty(), "{package} has methods");
        methods
    }

    #[test]
    fn the_table_has_the_methods_of_the_descriptors_and_no_others() {
        let own = declared(crate::grpc::v1::FILE_DESCRIPTOR_SET, "tollgate.v1");
        for (path, has_no_side_effects) in &own {
            let facts = Rpc::of_path(path).facts();
            assert!(facts.is_work, "{path} is work");
            assert_eq!(facts.writes, !has_no_side_effects, "{path}: idempotency_level in the proto, `writes` here");
        }
        let envoy = declared(crate::grpc::rls::FILE_DESCRIPTOR_SET, "envoy.service.ratelimit.v3");
        let health = declared(tonic_health::pb::FILE_DESCRIPTOR_SET, "grpc.health.v1");
        let reflection = [
            declared(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, "grpc.reflection.v1"),
            declared(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET, "grpc.reflection.v1alpha"),
        ];
        let served = own.into_iter().chain(envoy).chain(health).chain(reflection.concat());
        let served: BTreeSet<_> = served.map(|(path, _)| path).collect();
        let listed = Rpc::table().iter().flat_map(|facts| facts.paths).map(|path| (*path).to_owned());
        assert_eq!(listed.collect::<BTreeSet<_>>(), served);
    }
}
