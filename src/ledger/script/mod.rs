//! The scripts, put together by `build.rs`, and their digests.

mod constants;
mod function;
mod scopes;
mod unused;

use std::borrow::Cow;
use std::sync::LazyLock;

use prometheus_client::metrics::histogram::Histogram;
use sha1::Digest as _;

use crate::telemetry::metrics;

pub use function::Function;

/// One Lua script.
#[derive(Debug, Clone)]
pub struct Script {
    /// The name of its file in `lua/`.
    pub name: &'static str,
    /// The source, as `build.rs` put it together.
    pub source: Cow<'static, str>,
    /// The text that Redis runs: the source with its constants written in, without the functions that it does not use, and with a scope for
    /// each of its libraries.
    pub body: String,
    /// The SHA-1 by which Redis knows it.
    pub sha1: String,
    /// True if several calls may travel in one: their keys and their arguments one after the other. The script answers
    /// with an array, one answer for each.
    pub batches: bool,
    /// True if it may write.
    pub writes: bool,
    /// The same as a Redis function, for scripts that batch.
    pub function: Option<Function>,
    /// The time that calls wait for its answers.
    pub(super) duration: Histogram,
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Every script, by the name of its file.
        #[derive(Debug, Clone)]
        pub struct Scripts { $($(#[$doc])* pub $name: Script),* }

        static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
            $($name: Script::new(
                stringify!($name),
                include_str!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".lua")).into(),
            )),*
        });

        impl Scripts {
            /// All of them.
            #[must_use]
            pub fn all(&self) -> Vec<&Script> {
                vec![$(&self.$name),*]
            }

            /// The same ones, with another source each, and no functions: tests hold what they assert against scripts that are wrong.
            #[must_use]
            pub fn changed(&self, change: impl Fn(&Script) -> String) -> Self {
                Self { $($name: Script { function: None, ..self.$name.with_source(change(&self.$name)) }),* }
            }

            /// The same scripts, as functions where they can be. A caller that changed them gives Redis the libraries.
            #[must_use]
            pub fn as_functions(self) -> Self {
                Self { $($name: Script { function: Function::of(&self.$name), ..self.$name }),* }
            }
        }
    };
}

scripts! {
    /// Holds what an event may cost.
    reserve,
    /// Decides like `reserve`, but holds nothing.
    can_use,
    /// Counts the actual usage.
    commit,
    /// Counts the actual usage of an event that turned out to be another one.
    commit_changed,
    /// Gives a reservation back.
    release,
    /// Moves the deadline of a reservation, and holds more.
    extend,
    /// Counts an event that has happened.
    track,
    /// Counts an event that has happened at a time.
    track_at,
    /// Takes back what was counted in the current windows.
    reset,
    /// Gives back what an event would have cost.
    refund,
    /// Gives back some of what a reservation committed.
    refund_reservation,
    /// A user's standing in every group.
    usage,
    /// Returns what is remembered of a reservation.
    reservation_get,
    /// Reads some live holds of a user.
    reservations_list,
    /// Reads a subscription.
    subscription_get,
    /// Replaces a subscription.
    subscription_put,
    /// Deletes a user.
    user_delete,
    /// Reads the parts of a user that must be seen at one moment, and some of the memories.
    inspect,
    /// Keys that show live holds.
    inspect_holds,
    /// A plan of the archive.
    inspect_plan,
    /// Reads the API keys.
    api_keys,
    /// Adds or takes away an API key.
    api_key_put,
}

/// Every script, by the name of its file.
#[must_use]
pub fn scripts() -> &'static Scripts {
    &SCRIPTS
}

impl Script {
    fn new(name: &'static str, source: Cow<'static, str>) -> Self {
        let body = scopes::narrow(&unused::drop(&constants::fold(&source)));
        let digest = sha1::Sha1::digest(body.as_bytes());
        let sha1 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let batches = source.contains("\nreturn each(");
        let writes = !source.lines().next().is_some_and(|shebang| shebang.contains("no-writes"));
        let duration = metrics().script_duration(name);
        let mut script = Self { name, source, body, sha1, batches, writes, function: None, duration };
        script.function = Function::of(&script);
        script
    }

    /// The script with another source.
    fn with_source(&self, source: String) -> Self {
        if self.source == source { self.clone() } else { Self::new(self.name, source.into()) }
    }
}
